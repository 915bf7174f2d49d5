"""A rank that hangs: the others name it and what they wait in, end the job at the limit, and leave nothing behind."""

import re
import time
from pathlib import Path

import pytest

from hvdkit.runtime import limit_hangs
from tests.jobs import run_ranks, succeed
from tests.runtime.test_failure import processes_of

SCRIPT = Path(__file__).with_name("hanging.py")
LIMIT_S = 6
PLACES = {
    "step": r"(ready|allreduce) '.*optimizer.*' \((mpi|horovod)\)",
    "engine": r"allreduce 'the sum' \(horovod\)",
    "agreement": r"agreement '\d+: work_together' \(objects\)",
}


@pytest.mark.launch
@pytest.mark.parametrize(
    ("launcher", "where"),
    [("mpirun", "engine"), ("mpirun", "agreement"), ("horovodrun-gloo", "step")],
)
def test_a_stopped_rank_ends_the_job(launcher: str, where: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    result = run_ranks(3, SCRIPT, where, "stopped", str(LIMIT_S), mark, launcher=launcher, timeout_s=90)
    ended_s = time.time()
    report = f"\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
    assert result.returncode != 0, report
    hung = re.search(r"hangs at ([\d.]+)", result.stdout)
    assert hung is not None and LIMIT_S < ended_s - float(hung[1]) < LIMIT_S + 30, report
    messages = re.findall(r"hvdkit: (.*)", result.stderr)
    wanted = (
        rf"rank 0 of 3 failed, the job ends: it has waited \d+ s in {PLACES[where]}: rank 2 has not come "
        r"\(rank 2 does not answer: ended, stopped or hung\)"
    )
    assert len(messages) == 1 and re.fullmatch(wanted, messages[0]), report
    deadline_s = time.time() + 20
    while processes_of(mark) and time.time() < deadline_s:
        time.sleep(0.2)
    assert not processes_of(mark)


@pytest.mark.launch
def test_a_rank_that_works_is_waited_for_longer() -> None:
    """In an agreement; two limits pass here. Under Gloo the same check is at work."""
    result = succeed(run_ranks(2, SCRIPT, "agreement", "away", "3", "8"))
    assert result.stdout.count("worked to the end") == 2
    assert "has waited" not in result.stderr


def limited(timeout_s: float | None, **environ: str) -> dict[str, str]:
    """What `limit_hangs` with a default of 60 s makes of the environment; names without HOROVOD_STALL_."""
    full = {f"HOROVOD_STALL_{name}": value for name, value in environ.items()}
    limit_hangs(timeout_s, 60, full)
    return {name.removeprefix("HOROVOD_STALL_"): value for name, value in full.items()}


def test_an_argument_wins_over_the_environment_and_the_default_does_not() -> None:
    warn, end, off = "CHECK_TIME_SECONDS", "SHUTDOWN_TIME_SECONDS", "CHECK_DISABLE"
    assert limited(None) == {warn: "30", end: "60"}
    assert limited(20) == {warn: "10", end: "20", off: "0"}
    assert limited(0) == {warn: "60", end: "0", off: "0"}
    assert limited(20, **{warn: "100", end: "200", off: "1"}) == {warn: "10", end: "20", off: "0"}
    assert limited(None, **{warn: "100", end: "200"}) == {warn: "100", end: "200"}
    assert limited(None, **{warn: "100"}) == {warn: "100", end: "0"}
    assert limited(None, **{warn: "20"}) == {warn: "20", end: "60"}
    assert limited(None, **{end: "0"}) == {warn: "60", end: "0"}
    assert limited(None, **{off: "1"}) == {off: "1"}
