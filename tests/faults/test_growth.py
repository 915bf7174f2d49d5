"""What grows is found, and what merely differs from one process to the next is not taken for growth."""

import math
import random

import pytest

from tests.faults.growth import fit, growths
from tests.faults.samples import SUPERVISOR, Sample

MIB = 2**20


def life(attempt: int, *, begin_s: float, length_s: float, level_mib: float, mib_per_hour: float, rank: int = 0,
         files: int = 20) -> list[Sample]:  # fmt: skip
    """A process that is sampled every 5 s, with some noise and a steep start."""
    noise = random.Random(attempt)
    found = []
    for number in range(int(length_s / 5)):
        age_s = number * 5
        start_up = max(0, 50 - age_s) * 2
        memory = (level_mib - start_up + mib_per_hour * age_s / 3600 + noise.uniform(-0.5, 0.5)) * MIB
        found.append(
            Sample(begin_s + age_s, attempt, rank, 1000 + attempt, int(memory), int(memory), files + attempt, 8, 0)
        )
    return found


def lives(mib_per_hour: float, length_s: float = 600) -> list[Sample]:
    return [
        sample
        for attempt in range(4)
        for sample in life(
            attempt, begin_s=700 * attempt, length_s=length_s, level_mib=300 + 40 * attempt, mib_per_hour=mib_per_hour
        )
    ]


@pytest.mark.parametrize(("mib_per_hour", "grows"), [(0, False), (8, False), (40, True)])
def test_memory(mib_per_hour: float, grows: bool) -> None:
    """Later attempts have more memory and more open files, each from its start on: that is no growth."""
    found = {growth.bar.name: growth for growth in growths(lives(mib_per_hour))}
    assert abs(found["memory of its own"].per_hour - mib_per_hour) < 4
    assert found["memory of its own"].is_too_much == grows
    assert found["open files"].per_hour == 0 and not found["open files"].is_too_much


def test_a_short_soak_accuses_nobody() -> None:
    assert not growths(lives(40, length_s=65))[0].is_too_much
    assert growths([])[0].error == math.inf


def test_the_supervisor_is_looked_at_by_itself() -> None:
    samples = life(0, begin_s=0, length_s=3000, level_mib=60, mib_per_hour=50, rank=SUPERVISOR)
    assert growths(samples, supervisor=True)[0].is_too_much
    assert growths(samples)[0].error == math.inf


def test_the_fit_is_exact_without_noise() -> None:
    slope, error = fit([[(0, 1), (1, 3), (2, 5)], [(10, 100), (11, 102), (12, 104)]])
    assert slope == pytest.approx(2) and error == pytest.approx(0, abs=1e-9)
