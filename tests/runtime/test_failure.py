"""A rank that fails ends the job within seconds: a status other than 0, one message, nothing left behind."""

import re
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import run_program, run_ranks, succeed

SCRIPT = Path(__file__).with_name("failing.py")
LIMIT_S = 40
"""From the failure to the job's end; seconds on an idle machine, but the tests share theirs."""

pytestmark = pytest.mark.launch


def processes_of(mark: Path) -> list[int]:
    """Processes that have `mark` on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(mark) in (folder / "cmdline").read_text().split("\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def orphaned_memory(before: set[str]) -> set[str]:
    """New entries of /dev/shm that no process has mapped (other jobs may run on this machine)."""
    fresh = {entry.name for entry in Path("/dev/shm").iterdir()} - before
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text()
        except OSError:
            continue
        fresh -= {name for name in fresh if f"/dev/shm/{name}" in text}
    return fresh


@pytest.mark.parametrize(
    ("launcher", "way", "words", "status"),
    [
        ("mpirun", "hook", "rank 1 of 2 failed, the job ends:", 1),
        ("mpirun", "exit beside MPI", "rank 1 of 2 ended with status 3, the job ends", 3),
        ("mpirun", "kill", "", 137),
        ("mpirun", "segfault", "", 139),
        ("horovodrun-mpi", "os._exit", "", 3),
        ("horovodrun-gloo", "kill", "", 1),
        ("mpirun", "leave", "rank 0 of 2 failed, the job ends:", 1),
        ("mpirun", "interrupt", "rank 1 of 2 was interrupted", 130),
        # horovodrun itself always ends with 1.
        ("horovodrun-gloo", "error", "rank 1 of 2 failed, the job ends:", 1),
        ("horovodrun-gloo", "exit with words", "rank 1 of 2 ended with status 1, the job ends", 1),
        ("horovodrun-gloo", "os._exit", "", 1),
        ("horovodrun-gloo", "leave", "rank 0 of 2 failed, the job ends:", 1),
    ],
)
def test_the_job_ends(launcher: str, way: str, words: str, status: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    before = {entry.name for entry in Path("/dev/shm").iterdir()}
    result = run_ranks(2, SCRIPT, way, mark, launcher=launcher, timeout_s=120)
    ended_s = time.time()
    report = f"\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    assert result.returncode == status, report
    failed = re.search(r"fails at ([\d.]+)", result.stdout)
    assert failed is not None and ended_s - float(failed[1]) < LIMIT_S, report
    messages = re.findall(r"hvdkit: (.*)", result.stderr)
    assert messages == [words] if words else len(messages) <= 1, report
    if way in ("hook", "error"):
        assert ("IndexError" if way == "hook" else "KeyError: 'broken on purpose'") in result.stderr, report
        assert "HorovodInternalError" not in result.stderr, report
    if way == "leave":
        assert "after one of the ranks finished execution" in result.stderr, report
    if way == "exit with words":
        assert "no data for this rank" in result.stderr, report
    deadline_s = time.time() + LIMIT_S
    while (processes_of(mark) or orphaned_memory(before)) and time.time() < deadline_s:
        time.sleep(0.2)
    assert not processes_of(mark) and not orphaned_memory(before)


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun-gloo"])
def test_what_is_no_failure(launcher: str) -> None:
    """SystemExit(0), a caught exit, a normal return, an exception in another thread, a rank that leaves first."""
    result = succeed(run_ranks(2, SCRIPT, "nothing", launcher=launcher))
    assert "worked to the end" in result.stdout
    assert "IndexError" in result.stderr  # the thread's own traceback, as in any Python program
    assert "hvdkit:" not in result.stderr


def test_one_rank_alone_fails_as_any_python_program() -> None:
    result = run_ranks(1, SCRIPT, "error", launcher="python")
    assert result.returncode == 1 and "hvdkit:" not in result.stderr
    assert result.stderr.strip().splitlines()[-1] == "KeyError: 'broken on purpose'"


@pytest.mark.parametrize(("error", "status"), [("HvdkitError", 1), ("DataError", 1), ("ConfigError", 2)])
def test_what_every_start_would_meet_again_has_a_status_of_its_own(error: str, status: int) -> None:
    """`hvdkit run --max-restarts` does not start a job with status 2 again."""
    program = f"""
from hvdkit.errors import {error}
from hvdkit.runtime import end_job_on_error
with end_job_on_error():
    raise {error}("no")
"""
    result = run_program([sys.executable, "-c", program])
    assert (result.returncode, result.stderr) == (status, "hvdkit: error: no\n")
