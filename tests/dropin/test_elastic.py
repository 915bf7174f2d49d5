"""`hvd.elastic` in a real elastic job: no item is lost or repeated when a worker dies and when one joins."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.jobs import run_program, succeed

JOB = Path(__file__).with_name("elastic_job.py")
ITEMS, EPOCHS, DIES_AT_STEP, WAITS_AT_ITEM = 24, 2, 6, 18  # the job's


def trained_in_one_process(restarted_at: int) -> tuple[int, list[list[float]]]:
    """Steps and weights of one process that takes pairs of items where two workers did, single ones elsewhere."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    data = torch.randn(ITEMS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    parts = [*data[: 2 * restarted_at].split(2), *data[2 * restarted_at : WAITS_AT_ITEM].split(1)]
    parts += [*data[WAITS_AT_ITEM:].split(2), *(EPOCHS - 1) * data.split(2)]
    for part in parts:
        optimizer.zero_grad()
        model(part).pow(2).sum(dim=-1).mean().backward()
        optimizer.step()
    return len(parts), model.weight.tolist()


@pytest.mark.launch
def test_one_worker_dies_and_another_joins(tmp_path: Path) -> None:
    # Three names of this machine: a host with a dead worker is never used again.
    discovery = tmp_path / "discover.sh"
    discovery.write_text(f"#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\ntest -e {tmp_path}/more && echo 127.1:1\n:\n")
    discovery.chmod(0o755)
    options = ["--gloo", "-np", 2, "--min-np", 1, "--max-np", 2, "--host-discovery-script", discovery]
    job = ["horovodrun", *map(str, options), sys.executable, JOB, tmp_path]
    succeed(run_program(job, timeout_s=240))

    dead, survivor, newcomer = (
        [json.loads(line) for line in (tmp_path / f"{host}.jsonl").read_text().splitlines()]
        for host in ("127.0.0.1", "localhost", "127.1")
    )

    def events(notes: list[dict[str, Any]]) -> list[tuple[str, int]]:
        return [(note["event"], note["size"]) for note in notes]

    assert events(dead) == [("start", 2)]
    assert events(survivor) == [("start", 2), ("reset", 1), ("start", 1), ("reset", 2), ("start", 2), ("end", 2)]
    assert events(newcomer) == [("start", 2), ("end", 2)]
    # Its last step counts if the worker's part of the sum was on its way before it died.
    restarted_at = survivor[2]["steps"]
    assert restarted_at in (DIES_AT_STEP, DIES_AT_STEP + 1)
    assert newcomer[0]["steps"] == survivor[4]["steps"]
    assert [note["half"] for note in (*dead, *survivor, *newcomer) if "half" in note] == [1.5] * 5
    steps, weight = trained_in_one_process(restarted_at)
    for last in (survivor[-1], newcomer[-1]):
        assert last["steps"] == steps
        torch.testing.assert_close(torch.tensor(last["weight"]), torch.tensor(weight), rtol=1e-9, atol=1e-12)
