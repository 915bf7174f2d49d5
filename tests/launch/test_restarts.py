"""When a job is started again and when it is given up, by a clock of the test's own."""

import pytest

from hvdkit.launch.restarts import Decision, RestartPolicy, Restarts, status_text
from hvdkit.launch.times import parse_seconds, seconds

LONG, SHORT = 100.0, 5.0


def decisions(policy: RestartPolicy, ends: list[tuple[int, float]]) -> list[Decision]:
    """What is decided after each of `ends` (status, how long it ran), if every pause is kept."""
    restarts, now_s, found = Restarts(policy), 1000.0, []
    for status, ran_s in ends:
        now_s += ran_s
        found.append(restarts.after(status, ran_s, now_s))
        now_s += found[-1].pause_s
    return found


def test_as_many_restarts_as_allowed() -> None:
    found = decisions(RestartPolicy(3), [(137, LONG)] * 4)
    assert [decision.restart for decision in found] == [True, True, True, False]
    assert [decision.number for decision in found[:3]] == [1, 2, 3]
    assert found[3].reason == "all 3 restarts are spent"


def test_restarts_that_fell_out_of_the_window_do_not_count() -> None:
    policy = RestartPolicy(2, window_s=250.0)
    assert all(decision.restart for decision in decisions(policy, [(1, 150.0)] * 20))
    found = decisions(policy, [(1, 100.0)] * 3)
    assert [decision.restart for decision in found] == [True, True, False]
    assert found[2].reason == "all 2 restarts within 250 s are spent"


def test_the_pause_doubles_to_a_limit_and_begins_anew_after_a_long_run() -> None:
    ends = [(1, LONG)] * 10 + [(1, 601.0), (1, LONG)]
    pauses = [decision.pause_s for decision in decisions(RestartPolicy(100, first_pause_s=2.0), ends)]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 2, 4]


def test_no_pause_stays_none() -> None:
    assert {decision.pause_s for decision in decisions(RestartPolicy(9, first_pause_s=0.0), [(1, LONG)] * 5)} == {0}


def test_a_long_first_pause_is_kept() -> None:
    found = decisions(RestartPolicy(9, first_pause_s=3600.0), [(1, LONG)] * 3)
    assert [decision.pause_s for decision in found] == [3600, 3600, 3600]


@pytest.mark.parametrize(
    ("ends", "restarted"),
    [
        pytest.param([(1, SHORT), (1, SHORT)], [True, False], id="alike"),
        pytest.param([(1, SHORT), (137, SHORT), (1, SHORT)], [True, True, True], id="different"),
        pytest.param(
            [(1, SHORT), (1, LONG), (1, SHORT), (1, SHORT)], [True, True, True, False], id="one got somewhere"
        ),
        pytest.param([(2, SHORT)], [False], id="usage"),
        pytest.param([(2, LONG), (2, SHORT)], [True, False], id="status 2 after a while is no wrong option"),
        pytest.param([(75, LONG)], [False], id="saved"),
        pytest.param([(75, SHORT)], [False], id="saved at once"),
    ],
)
def test_what_would_fail_again_is_not_started_again(ends: list[tuple[int, float]], restarted: list[bool]) -> None:
    assert [decision.restart for decision in decisions(RestartPolicy(9), ends)] == restarted


def test_quick_failures_are_the_users_to_define() -> None:
    ends = [(1, SHORT)] * 4
    assert all(decision.restart for decision in decisions(RestartPolicy(9, quick_failure_s=0), ends))
    assert all(decision.restart for decision in decisions(RestartPolicy(9, quick_failure_s=SHORT), ends))


@pytest.mark.parametrize(
    ("status", "text"),
    [(1, "1"), (137, "137 (SIGKILL)"), (143, "143 (SIGTERM)"), (255, "255"), (75, "75 (saved, to be resumed)")],
)
def test_status_in_words(status: int, text: str) -> None:
    assert status_text(status) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (1, "1 s"), (1.26, "1.3 s"), (9.97, "10 s"), (83.4, "83 s"), (725, "12 min 5 s"), (7500, "2 h 5 min")],
)
def test_times_in_words(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("1.5s", 1.5), ("5m", 300), ("1h", 3600), ("2d", 172800)])
def test_times_as_users_write_them(text: str, value: float) -> None:
    assert parse_seconds(text) == value


@pytest.mark.parametrize("text", ["", "h", "-1", "-1h", "1x", "nan", "inf", "1 hour"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError):
        parse_seconds(text)
