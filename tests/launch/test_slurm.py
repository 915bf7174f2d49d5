"""`srun` starts the ranks itself: over PMIx with Open MPI. Runs where Slurm is installed."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvdkit.runtime.mpi import wheel_prefix
from tests.jobs import BIN, ROOT, run_program, succeed
from tests.launch.slurm import Slurm

pytestmark = pytest.mark.launch

SUM = """
import sys, torch, hvdkit as hvd
world = hvd.init()
total = hvd.allreduce(torch.full((5,), float(hvd.rank() + 1)), op=hvd.Sum)
sys.stdout.write(f"rank {world.rank} of {world.size}, {world.local_rank} of {world.local_size}, {total.tolist()}\\n")
"""


def environ(slurm: Slurm) -> dict[str, str]:
    return slurm.environ | {"PATH": f"{BIN}:{slurm.environ['PATH']}"}


def test_two_ranks_over_pmix(slurm: Slurm) -> None:
    result = succeed(run_program(["srun", "--mpi=pmix", "-n2", "python", "-c", SUM], env=environ(slurm)))
    assert sorted(result.stdout.splitlines()) == [
        "rank 0 of 2, 0 of 2, [3.0, 3.0, 3.0, 3.0, 3.0]",
        "rank 1 of 2, 1 of 2, [3.0, 3.0, 3.0, 3.0, 3.0]",
    ]


@pytest.mark.skipif(wheel_prefix() is None, reason="a site's Open MPI may have been built with Slurm's PMI2")
def test_without_pmix_one_message_says_what_to_do(slurm: Slurm) -> None:
    result = run_program(["srun", "--mpi=pmi2", "-n2", "python", "-c", SUM], env=environ(slurm))
    assert result.returncode == 1 and result.stdout == ""
    messages = [line for line in result.stderr.splitlines() if not line.startswith("srun: ")]
    assert len(messages) == 1
    assert (
        messages[0].startswith("hvdkit: error: srun started 2 tasks without PMIx") and "srun --mpi=pmix" in messages[0]
    )


def test_a_single_task_is_one_rank(slurm: Slurm) -> None:
    result = succeed(run_program(["srun", "--mpi=none", "-n1", "python", "-c", SUM], env=environ(slurm)))
    assert result.stdout == "rank 0 of 1, 0 of 1, [1.0, 1.0, 1.0, 1.0, 1.0]\n"


def test_hvdkit_run_inside_an_allocation(slurm: Slurm) -> None:
    program = "import os, sys; sys.stdout.write(f\"rank {os.environ['OMPI_COMM_WORLD_RANK']}\\n\")"
    ranks = [sys.executable, "-m", "hvdkit.launch.run", "-np", "2", "--", "python", "-S", "-c", program]
    result = succeed(run_program(["salloc", "-n2", *ranks], env=environ(slurm)))
    assert "rank 0\n" in result.stdout and "rank 1\n" in result.stdout


@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "activate").exists(), reason="the script activates an environment")
def test_the_batch_script_saves_and_queues_again(slurm: Slurm, tmp_path: Path) -> None:
    """With ranks that do nothing else; the signal is sent as Slurm does before the time is over."""
    text = (ROOT / "mpi_configs" / "slurm.sbatch").read_text()
    train = 'python -m hvdkit.train --out "runs/$SLURM_JOB_ID" "$@"'
    assert train in text
    script = tmp_path / "job.sbatch"
    script.write_text(text.replace(train, f"python -S {ROOT}/tests/launch/attempt.py {tmp_path} save"))
    options = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={tmp_path}/log"]
    setting = environ(slurm) | {"HVDKIT_ENV": sys.prefix, "MPI_TYPE": "none"}
    number = succeed(run_program(["sbatch", "--parsable", *options, script], env=setting)).stdout.strip()
    try:
        wait_until(lambda: (tmp_path / "0.0").exists() and (tmp_path / "0.1").exists())
        succeed(run_program(["scancel", "--signal=USR1", number], env=setting))
        wait_until(lambda: " Restarts=1 " in run_program(["scontrol", "show", "job", number], env=setting).stdout)
        assert [(tmp_path / f"saved.{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGUSR1))] * 2
        assert json.loads((tmp_path / "0.1").read_text())["name"] == f"slurm-{number}"
    finally:
        run_program(["scancel", number], env=setting)


def wait_until(condition: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)
