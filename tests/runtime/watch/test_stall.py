"""A rank that waits in a collective says which ranks have not come, and ends the job where that was asked for."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from hvdkit.runtime.watch.limits import StallLimits, stall_limits
from hvdkit.runtime.words import ranks_in_words
from tests.jobs import run_ranks, succeed
from tests.runtime.test_failure import processes_of

SCRIPT = Path(__file__).with_name("watched.py")
WARN = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "1"}
WAITED = r"rank (\d) of 3 has waited \d+ s in barrier 'bucket 3 of optimizer 0' \(mpi\): (.*)"

launched = pytest.mark.launch


def warnings_of(result: subprocess.CompletedProcess[str]) -> set[tuple[str, str]]:
    """The rank that spoke, and what it said of the others."""
    return set(re.findall(WAITED, result.stderr))


@launched
def test_the_rank_that_has_not_come_is_named_by_one() -> None:
    result = succeed(run_ranks(3, SCRIPT, "late", "5", env=WARN))
    assert warnings_of(result) == {("0", "rank 2 has not come")}, result.stderr
    assert result.stdout.count("worked to the end") == 3


@launched
def test_a_rank_that_cannot_answer_is_named_too() -> None:
    result = succeed(run_ranks(3, SCRIPT, "stopped", "5", env=WARN))
    assert ("0", "rank 2 has not come (rank 2 does not answer: ended, stopped or hung)") in warnings_of(result)
    assert result.stdout.count("worked to the end") == 3


@launched
def test_it_can_be_switched_off() -> None:
    result = succeed(run_ranks(2, SCRIPT, "late", "4", env={**WARN, "HOROVOD_STALL_CHECK_DISABLE": "1"}))
    assert "has waited" not in result.stderr


@launched
@pytest.mark.parametrize(
    ("way", "missing"),
    [("never", "rank 2 has not come"), ("crossed", "rank 2 is in all-gather 'loss' (mpi)")],
)
def test_the_job_ends_after_the_second_limit(way: str, missing: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    result = run_ranks(3, SCRIPT, way, mark, env={**WARN, "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "6"})
    ended_s = time.time()
    report = f"\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    assert result.returncode == 1, report
    stuck = re.search(r"stuck_at=([\d.]+)", result.stdout)
    assert stuck is not None and ended_s - float(stuck[1]) < 30, report
    assert ("0", missing) in warnings_of(result), report
    messages = re.findall(r"hvdkit: (.*)", result.stderr)
    wanted = rf"rank 0 of 3 failed, the job ends: it has waited \d+ s in barrier '.*' \(mpi\): {re.escape(missing)}"
    assert len(messages) == 1 and re.fullmatch(wanted, messages[0]), report
    if way == "crossed":
        assert re.search(
            r"rank 2 of 3 has waited \d+ s in all-gather 'loss' \(mpi\): ranks 0, 1 are in barrier 'bucket 3 of",
            result.stderr,
        ), report
    deadline_s = time.time() + 20
    while processes_of(mark) and time.time() < deadline_s:
        time.sleep(0.2)
    assert not processes_of(mark)


@launched
def test_notes_that_nobody_reads_do_not_keep_the_job_from_ending() -> None:
    result = succeed(run_ranks(3, SCRIPT, "gone", "5", env=WARN, timeout_s=60))
    assert "rank 2 has not come (rank 2 does not answer: ended, stopped or hung)" in result.stderr
    assert result.stdout.count("worked to the end") == 2


@launched
@pytest.mark.parametrize("limits", [WARN, {"HOROVOD_STALL_CHECK_DISABLE": "1"}])
def test_below_thread_multiple_what_is_lost_is_said_once(limits: dict[str, str]) -> None:
    result = succeed(run_ranks(2, SCRIPT, "serialized", env=limits))
    assert result.stderr.count("below MPI_THREAD_MULTIPLE: gradients and strategy") == 1
    assert result.stdout.count("worked to the end") == 2


def test_limits_are_horovods(caplog: pytest.LogCaptureFixture) -> None:
    warn, shutdown = "HOROVOD_STALL_CHECK_TIME_SECONDS", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"
    assert stall_limits({}) == StallLimits(60, 0)
    assert stall_limits({warn: "5", shutdown: "20"}) == StallLimits(5, 20)
    assert stall_limits({"HOROVOD_STALL_CHECK_DISABLE": "0"}) == StallLimits(60, 0)
    assert stall_limits({"HOROVOD_STALL_CHECK_DISABLE": "1", warn: "5"}) is None
    assert stall_limits({warn: "0"}) is None
    assert not caplog.messages
    assert stall_limits({shutdown: "20"}) == StallLimits(60, 0)
    assert f"{shutdown}=20 is less than {warn}=60" in caplog.messages[-1]
    assert stall_limits({warn: "soon"}) == StallLimits(60, 0)
    assert caplog.messages[-1] == f"{warn}='soon' is not a number; 60 is used"


def test_ranks_in_words() -> None:
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words([3, 2]) == "ranks 2, 3"
    assert ranks_in_words([9, 1, 2, 3, 4, 6, 7]) == "ranks 1-4, 6, 7, 9"
