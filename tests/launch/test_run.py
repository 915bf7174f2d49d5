"""`hvdkit run` with real ranks, from a shell that has activated nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs import BIN, ROOT, clean_environ, run_program, succeed

pytestmark = pytest.mark.launch

PLAIN_SHELL = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
LAUNCHERS = {"auto": [], "mpirun": ["--launcher", "mpirun"], "Gloo": ["--gloo"]}
SUM = """
import sys, torch, hvdkit as hvd
world = hvd.init()
total = hvd.allreduce(torch.full((5,), float(hvd.rank() + 1)), op=hvd.Sum)
sys.stdout.write(f"rank {world.rank} of {world.size}, {world.backend}, {total.tolist()}, {sys.prefix}\\n")
"""
WHO = "import os, sys; sys.stdout.write(f\"rank {os.environ['OMPI_COMM_WORLD_RANK']} {sys.prefix}\\n\")"


def hvdkit_run(*words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return run_program([BIN / "hvdkit", "run", *words], env=PLAIN_SHELL, timeout_s=timeout_s)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_meet(launcher: str) -> None:
    result = succeed(hvdkit_run("-np", "2", *LAUNCHERS[launcher], "--", "python", "-c", SUM))
    backend = "gloo" if launcher == "Gloo" else "mpi"
    for rank in range(2):
        assert f"rank {rank} of 2, {backend}, [3.0, 3.0, 3.0, 3.0, 3.0], {sys.prefix}\n" in result.stdout
    program = "mpirun" if launcher == "mpirun" else "horovodrun"
    assert f'hvdkit run: PATH={BIN}:"$PATH" {program} ' in result.stderr


@pytest.mark.parametrize("launcher", ["auto", "mpirun"])
def test_the_printed_line_can_be_pasted(launcher: str) -> None:
    """More ranks than cores, too: slots must not run out."""
    ranks = 2 * len(os.sched_getaffinity(0)) + 1
    words = ["-np", str(ranks), *LAUNCHERS[launcher], "--dry-run", "--", "python", "-S", "-c", WHO]
    line = succeed(hvdkit_run(*words)).stdout
    assert line.count("\n") == 1
    result = succeed(run_program(["sh", "-c", line], env=PLAIN_SHELL))
    assert sorted(map(int, re.findall(r"rank (\d+)", result.stdout))) == list(range(ranks))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_status_is_forwarded(launcher: str) -> None:
    result = hvdkit_run("-np", "2", *LAUNCHERS[launcher], "--", "python", "-S", "-c", "import sys; sys.exit(7)")
    assert result.returncode == 7


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_ends_launcher_and_ranks(launcher: str, tmp_path: Path) -> None:
    program = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(100)"
    words = ["-np", "2", *LAUNCHERS[launcher], "--", "python", "-S", "-c", program, str(tmp_path)]
    process = subprocess.Popen(
        [BIN / "hvdkit", "run", *words],
        env=clean_environ(PLAIN_SHELL),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        ranks = [psutil.Process(int(file.name)) for file in tmp_path.iterdir()]
        assert len(ranks) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) != 0
        _, alive = psutil.wait_procs([rank for rank in ranks if rank.is_running()], timeout=10)
        assert [rank for rank in alive if rank.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-np", "2"], "nothing to run"),
        (["-np", "2", "--", "no-such-program"], "no-such-program is not a program on PATH"),
        (["-np", "3", "-H", "node1,node2", "--", "python"], "-np 3 is more than the 2 slots of node1:1,node2:1"),
        (["-np", "2", "-H", "no de", "--", "python"], "'no de' is not of the form host or host:slots"),
        (["-np", "2", "-H", "no-such-host.invalid:2", "--", "python"], "ssh does not reach no-such-host.invalid"),
        (["-np", "0", "--", "python"], "at least 1 rank is needed"),
    ],
)
def test_one_sentence_and_status_2(words: list[str], said: str) -> None:
    result = hvdkit_run(*words, timeout_s=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.startswith("hvdkit run: error: ")
    assert result.stderr.count("\n") == 1


def test_plain_python_is_one_rank() -> None:
    result = succeed(run_program([sys.executable, "-c", SUM], env=PLAIN_SHELL))
    assert result.stdout == f"rank 0 of 1, mpi, [1.0, 1.0, 1.0, 1.0, 1.0], {sys.prefix}\n"


def test_a_job_that_was_ended_never_looks_finished() -> None:
    on_signal = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
    program = f"import signal, sys; {on_signal}; print('up', flush=True); signal.pause()"
    process = subprocess.Popen(
        [BIN / "hvdkit", "run", "--launcher", "mpirun", "-np", "1", "--", "python", "-S", "-c", program],
        cwd=ROOT,
        env=clean_environ(PLAIN_SHELL),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
