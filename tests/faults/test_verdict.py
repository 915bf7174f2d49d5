"""The verdict says FAILED for everything that is not as it should be, and for nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.plan import Case, Fault
from tests.faults.result import Result
from tests.faults.verdict import Evidence, judge

CASE = Case(0, (Fault("SIGKILL", "step", 1, 7),), "plain", "mpirun", 2)
STEPS = [*((0, step) for step in range(1, 8)), *((1, step) for step in range(5, 21))]
SEEN = Evidence([0], 2, {0: 1.5}, STEPS, [], [])
DEAD = "mpirun noticed that process rank 1 with PID 0 on node x exited on signal 9 (Killed)."


def case_of(kind: str, point: str = "step", *, mode: str = "plain", supervised: bool = True) -> Case:
    return replace(CASE, faults=(Fault(kind, point, 1, 7),), mode=mode, supervised=supervised)


def test_survived() -> None:
    verdict = judge(CASE, SEEN)
    assert verdict.outcome == "survived" and verdict.is_equal and not verdict.problems
    assert verdict.seconds == 1.5 and verdict.steps_repeated == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"statuses": [1]}, r"statuses [1], not [0]"),
        ({"statuses": [None]}, "did not end"),
        ({"attempts": 3}, "3 attempts, not 2"),
        ({"seconds_to_end": {0: 10.5}}, "10.5 s from SIGKILL"),
        ({"seconds_to_end": {}}, "never struck"),
        ({"differences": ["model differs"]}, "model differs"),
        ({"leftovers": ["process left"]}, "process left"),
        ({"steps": [*STEPS[:7], *((1, step) for step in range(1, 21))]}, "7 steps lost, 0 to 4 allowed"),
        ({"steps": [*STEPS[:7], *((1, step) for step in range(9, 21))]}, "-1 steps lost"),
    ],
)
def test_failed(change: dict[str, Any], words: str) -> None:
    verdict = judge(CASE, replace(SEEN, **change))
    assert verdict.outcome == "FAILED" and words in "; ".join(verdict.problems)


def test_times() -> None:
    late = replace(SEEN, seconds_to_end={0: 12.0})
    assert judge(CASE, late, slack=2).outcome == "survived"
    assert judge(case_of("SIGSTOP"), late).outcome == "survived", "the set time comes on top"
    assert judge(case_of("SIGSTOP"), replace(SEEN, seconds_to_end={0: 19.0})).outcome == "FAILED"


def test_told_to_end_loses_nothing() -> None:
    case = case_of("SIGTERM")
    told = replace(SEEN, statuses=[75, 0], steps=[*STEPS[:7], *((1, step) for step in range(8, 21))])
    assert judge(case, told).outcome == "survived"
    assert "3 steps lost" in judge(case, replace(told, steps=STEPS)).problems[0]
    assert judge(case, replace(told, statuses=[0])).outcome == "FAILED"


def test_what_is_saved_in_the_background_may_be_lost() -> None:
    steps = [*STEPS[:7], *((1, step) for step in range(1, 21))]
    assert judge(case_of("SIGKILL", mode="async"), replace(SEEN, steps=steps)).outcome == "survived"


def test_ended_cleanly() -> None:
    case = case_of("SIGKILL", supervised=False)
    seen = replace(SEEN, statuses=[137, 0], attempts=0, output=DEAD)
    assert judge(case, seen).outcome == "ended cleanly"
    for output, words in (
        ("killed", "names the cause"),
        (DEAD.replace("rank 1", "rank 0"), "names rank 1"),
        (f"{DEAD}\nhvdkit: rank 0 of 2 failed\n[1,1]<stderr>:hvdkit: rank 1 of 2 failed", "2 messages instead of one"),
    ):
        verdict = judge(case, replace(seen, output=output))
        assert verdict.outcome == "FAILED" and words in "; ".join(verdict.problems)
    assert judge(case, replace(seen, statuses=[0, 0])).outcome == "FAILED"
    assert judge(case, replace(seen, statuses=[137, 1])).outcome == "FAILED"


def test_results_differ_in_a_bit() -> None:
    one = Result(20, {"model/model.safetensors": "a" * 32}, {"20": [1.0, 2.0]})
    assert one.differences(one) == []
    other = Result(16, {"model/model.safetensors": "b" * 32, "more.safetensors": ""}, {"20": [1.0, 2.0000000001]})
    assert len(one.differences(other)) == 4
