"""Horovod's engine rests while a rank asks for nothing, and wakes when it does: the edit of its source at work."""

import re
from pathlib import Path

import pytest

from tests.jobs import run_ranks, succeed

SCRIPT = Path(__file__).parent / "resting.py"


@pytest.mark.launch
def test_it_wakes_for_every_operation_and_takes_no_time_between_them() -> None:
    """The engine looks for the others every 60 s here, which nothing may wait for."""
    result = succeed(run_ranks(2, SCRIPT, env={"HOROVOD_IDLE_CYCLE_TIME": "60000"}, timeout_s=50))
    ranks = [dict(re.findall(r"(\w+)=([\d.]+)", line)) for line in re.findall(r".*slowest_s=.*", result.stdout)]
    assert len(ranks) == 2
    for seconds in ({name: float(value) for name, value in rank.items()} for rank in ranks):
        assert seconds["slowest_s"] < 0.25  # a late core included; it takes half a millisecond
        assert seconds["late_s"] < 1.9
        assert seconds["busy_s"] < 0.01
        assert seconds["shutdown_s"] < 5
    assert max(float(rank["late_s"]) for rank in ranks) > 1.4
