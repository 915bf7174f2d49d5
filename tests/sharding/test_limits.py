"""A model whose unsharded state is larger than a hard memory limit trains cut; a rank that dies ends the job."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvdkit.train.room import memory_limit
from tests.jobs import ROOT, run_program, run_ranks

pytestmark = [pytest.mark.launch, pytest.mark.timeout(400)]

SHARED = Path("/dev/shm")
LIMIT_BYTES = 5_200_000_000
"""The unsharded state of four ranks is 5.5 GB."""
WORDS = ("-m", "hvdkit.train", "--data", "hvdkit", "--model", "bert-base", "--context", "16", "--batch-size", "1",
         "--steps", "2", "--eval-every", "0", "--eval-batches", "1")  # fmt: skip


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with a limit on memory, that a process enters by writing its pid into its `cgroup.procs`."""
    for base, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(base) / f"hvdkit-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / name).write_text(str(LIMIT_BYTES))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        yield folder
        for _ in range(50):  # the kernel takes a moment to forget the processes
            try:
                folder.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        return
    pytest.skip("no cgroup with a memory limit can be made here")


def run_within(cgroup: Path, out: Path, stage: int) -> tuple[int, str]:
    command = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    job = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "4", "python", *WORDS]
    done = run_program(["sh", "-c", command, "sh", *job, "--sharding", str(stage), "--out", out], timeout_s=300)
    return done.returncode, done.stdout + done.stderr


def test_a_model_larger_than_the_limit_trains_at_stage_3_and_is_refused_with_advice_at_0(
    cgroup: Path, tmp_path: Path
) -> None:
    status, printed = run_within(cgroup, tmp_path / "0", 0)
    assert status != 0
    assert "4 ranks on" in printed and "need 6.3 GB" in printed and "there are 5.2 GB. --sharding" in printed, printed
    status, printed = run_within(cgroup, tmp_path / "3", 3)
    assert status == 0, printed
    assert "by the formula, per rank: parameters 86.5 MB, gradients 86.5 MB" in printed, printed


def test_a_limit_is_the_machines_memory_at_most() -> None:
    assert 0 < memory_limit() < float("inf")


SCRIPT = """
import os, signal, sys, time
import torch
import hvdkit as hvd
from tests.sharding.problems import loss_of, make, tokens_of, trained

world = hvd.init()
model, _ = make()
stage = int(sys.argv[1])
model, optimizer = hvd.shard(model, torch.optim.AdamW(trained(model)), stage, shared_weights=stage == 1)
for step in range(1000):
    optimizer.zero_grad()
    loss = loss_of(model, tokens_of(world, step).chunk(world.size)[world.rank])
    if step == 5 and world.rank == 1:
        model.layers[1].up.weight.register_post_accumulate_grad_hook(lambda p: os.kill(os.getpid(), signal.SIGKILL))
        print("dies", time.time(), flush=True)
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_rank_killed_within_a_step_ends_the_job(tmp_path: Path, stage: int) -> None:
    script = tmp_path / "dies.py"
    script.write_text(SCRIPT)
    before = set(SHARED.iterdir())
    done = run_ranks(3, script, str(stage), env={"PYTHONPATH": str(ROOT)}, timeout_s=60)
    ended = time.time()
    died = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("dies"))
    assert done.returncode != 0 and ended - died < 10
    assert f"signal {signal.SIGKILL.value}" in done.stdout + done.stderr
    assert not set(SHARED.iterdir()) - before
