"""Runs `job.py` and compares what it did with one process: every sample once, the same weights."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.elastic.problem import losses_of, new_data, new_model
from tests.jobs import run_program, succeed

JOB = "tests.elastic.job"


@dataclass(frozen=True)
class Plan:
    """What a job trains, and what happens to it."""

    samples: int = 46
    batch: int = 2
    epochs: int = 2
    commit_every: int = 3
    epoch_at_top: bool = True
    """Whether `set_epoch` is called at the top of an epoch, or at the end of the one before."""
    hosts: Mapping[int, str] = field(default_factory=dict)
    """At which step which lines the discovery script begins to print."""
    kills: Mapping[int, str] = field(default_factory=dict)
    """In which step which worker (`host.local_rank`) is killed."""
    waits_for_killer: bool = False
    """Whether it does not kill itself: `FOLDER/killed.STEP` is there when it waits in the middle of the step."""


def command(folder: Path, plan: Plan, hosts: str, *options: str, workers: int, module: str = "hvdkit") -> list[str]:
    """Prepare `folder` for a job that begins on `hosts`, and return its command."""
    (folder / "plan.json").write_text(json.dumps(asdict(plan)))
    (folder / "hosts").write_text(hosts)
    for name in ("batches", "ends"):
        (folder / name).mkdir()
    discovery = folder / "discover.sh"
    discovery.write_text(f"#!/bin/sh\ncat {folder}/hosts\n")
    discovery.chmod(0o755)
    elastic = [
        "--gloo",
        "-np",
        str(workers),
        "--min-np",
        "1",
        "--max-np",
        "2",
        "--host-discovery-script",
        str(discovery),
    ]
    return ["horovodrun", *elastic, *options, sys.executable, "-m", JOB, str(folder), module]


def run_job(folder: Path, plan: Plan, hosts: str, *, workers: int, module: str = "hvdkit") -> dict[str, Any]:
    """Run it on names of this machine to its end; returns how its workers ended."""
    # With one host Horovod waits for a second to find out by which interface they reach each other.
    words = command(folder, plan, hosts, "--network-interface", "lo", workers=workers, module=module)
    succeed(run_program(words, timeout_s=240))
    return ends(folder)


def ends(folder: Path) -> dict[str, Any]:
    """What each worker that saw the end wrote, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in (folder / "ends").iterdir()}


def check(folder: Path, plan: Plan) -> list[int]:
    """Assert that every sample is in one step that counts, and that the weights are those of one process.

    Returns the number of workers in each step.
    """
    found = list(ends(folder).values())
    history = found[0]["history"]
    assert all(end == found[0] for end in found), "workers ended with different weights"
    counting = {(call, step): rate for step, (call, rate, _) in enumerate(history)}
    batches: dict[int, dict[int, list[int]]] = defaultdict(dict)
    seen: Counter[tuple[int, int]] = Counter()
    for path in (folder / "batches").iterdir():
        for line in map(json.loads, path.read_text().splitlines()):
            if (line["call"], line["step"]) in counting:
                assert line["rank"] not in batches[line["step"]]
                batches[line["step"]][line["rank"]] = line["indices"]
                seen.update((line["epoch"], index) for index in line["indices"])
    expected = Counter((epoch, index) for epoch in range(plan.epochs) for index in range(plan.samples))
    assert not expected - seen, f"lost: {sorted(expected - seen)}"
    assert not seen - expected, f"repeated: {sorted((seen - expected).elements())}"
    assert [len(batches[step]) for step in range(len(history))] == [size for *_, size in history]

    model = new_model()
    model.load_state_dict({name: torch.tensor(value, dtype=torch.float64)
                           for name, value in json.loads((folder / "first.json").read_text()).items()})  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    data = new_data(plan.samples)
    for (_, step), rate in counting.items():
        union = [index for indices in batches[step].values() for index in indices]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        losses_of(model, data[union]).mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            torch.tensor(found[0]["weights"][name], dtype=torch.float64), value, rtol=1e-6, atol=1e-9
        )
    return [size for *_, size in history]
