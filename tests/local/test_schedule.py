"""How long rounds are: what is asked for, and what follows from measurements."""

import pytest

from hvdkit.errors import ConfigError
from hvdkit.local.schedule import Adaptive, Measured, Scheduled, parse_schedule


def measured(steps: int, drift: float, cost: float) -> Measured:
    """A synchronisation takes as long as `cost` steps."""
    return Measured(steps, drift, step_s=0.1, synchronisation_s=0.1 * cost)


def test_texts() -> None:
    assert parse_schedule(50) == parse_schedule("50") == Scheduled(((0, 50),))
    assert parse_schedule("10@0,50@200") == Scheduled(((0, 10), (200, 50)))
    assert parse_schedule("adaptive") == Adaptive()
    assert parse_schedule("adaptive:min=10,max=200,drift=0.5,cost=0.01") == Adaptive(10, 200, 0.5, 0.01)
    for text in (50, "10@0,50@200", "adaptive:min=10,max=200"):
        schedule = parse_schedule(text)
        assert parse_schedule(str(schedule)) == schedule == parse_schedule(schedule)


@pytest.mark.parametrize(("text", "words"), [
    ("often", "a number of steps"), ("0", "1 or more"), (-3, "1 or more"), ("10@5", "begin with 0"),
    ("10@0,5@0", "increase"), ("10@0,5", "a number of steps"), ("adaptive:often=1", "a number of steps"),
    ("adaptive:min=9,max=3", "max no less"), ("adaptive:cost=2", "between 0 and 1"), ("adaptive:min=x", "a number"),
])  # fmt: skip
def test_texts_that_mean_nothing(text: str | int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_schedule(text)


def test_scheduled() -> None:
    schedule = parse_schedule("10@0,50@200")
    assert [schedule.first(step) for step in (0, 199, 200, 1000)] == [10, 10, 50, 50]
    assert schedule.following(100, measured(10, 1, 1)) == (10, "")
    assert schedule.following(200, measured(10, 1, 1)) == (50, "50 steps from step 200 on, as scheduled")


def test_adaptive_by_hand() -> None:
    """From a round of 40 steps that ended with half the drift that is allowed, and so on."""
    schedule = Adaptive(min=10, max=100, drift=0.2, cost=0.05)
    length, why = schedule.following(0, measured(40, drift=0.1, cost=3.0))
    assert length == 60 and "a synchronisation takes as long as 3 steps, 5% of the time from 60 steps on" in why
    assert schedule.following(0, measured(40, drift=0.16, cost=3.0))[0] == 50, "the drift allows no more"
    assert schedule.following(0, measured(40, drift=0.1, cost=50))[0] == 80, "at most twice"
    assert schedule.following(0, measured(60, drift=0.01, cost=50))[0] == 100, "at most max"
    assert schedule.following(0, measured(40, drift=9.0, cost=50))[0] == 20, "at least half"
    assert schedule.following(0, measured(12, drift=9.0, cost=50))[0] == 10, "at least min"
    assert schedule.following(0, measured(40, drift=0.0, cost=50))[0] == 80, "one worker does not drift"
    assert schedule.following(0, measured(40, drift=0.1, cost=0.0))[0] == 20, "nothing is saved by long rounds"
    assert schedule.following(0, Measured(40, 0.1, 0.0, 0.0))[0] == 20
