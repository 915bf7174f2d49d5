"""Plans are drawn by a seed, cover everything, and hold only faults that can strike."""

import json
from collections import Counter

import pytest

from tests.faults.plan import (
    ABOVE,
    CHECKPOINT_EVERY,
    GLOO_MODES,
    KINDS,
    LAUNCHERS,
    MODES,
    ON_RANK_0,
    PAIRS,
    POINTS,
    SAVING,
    STEPS,
    as_json,
    case_from,
    draw,
)

SEEDS = range(20)


def test_the_same_seed_draws_the_same() -> None:
    assert draw(100, 3) == draw(100, 3)
    assert draw(100, 3) != draw(100, 4)
    assert draw(100, 3)[:40] == draw(40, 3), "a longer campaign begins as a shorter one"


def test_a_hundred_faults_cover_every_kind_at_every_point() -> None:
    assert {kind for kind, _ in PAIRS} == set(KINDS) and {point for _, point in PAIRS} == set(POINTS)
    for seed in SEEDS:
        cases = draw(100, seed)
        counts = Counter((case.fault.kind, case.fault.point) for case in cases)
        assert counts.keys() == set(PAIRS) and max(counts.values()) <= 2
        assert {case.mode for case in cases} == set(MODES)
        assert {case.launcher for case in cases} == set(LAUNCHERS)
        assert {case.ranks for case in cases} == {2, 3}
        assert {case.supervised for case in cases} == {True, False}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_fault_can_strike(seed: int) -> None:
    for case in draw(200, seed):
        attempts = [fault.attempt for fault in case.faults]
        assert attempts == list(range(len(attempts))), "one fault per attempt, one after another"
        for fault in case.faults:
            assert 0 <= fault.rank < case.ranks
            assert fault.rank == 0 or fault.point not in ON_RANK_0
            assert 0 <= fault.step < STEPS
            if fault.point in SAVING:
                assert fault.step % CHECKPOINT_EVERY == 0 < fault.step
            if fault.kind in ABOVE:
                assert fault.step <= STEPS // 2 or fault.point in SAVING
        assert case.supervised or len(case.faults) == 1
        assert case.launcher != "gloo" or (case.mode in GLOO_MODES and case.ranks == 2)


def test_left_out_where_the_machine_has_not_what_it_takes() -> None:
    kinds = {case.fault.kind for case in draw(300, 0, hosts=False, disks=False)}
    assert kinds == set(KINDS) - {"network cut", "disk full"}


def test_plans_are_data() -> None:
    cases = draw(100, 5)
    assert [case_from(item) for item in json.loads(json.dumps(as_json(cases)))] == cases
