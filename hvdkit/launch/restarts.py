"""When a job that failed is started again, and when that is given up. Pure: it is told the time.

A job is started again after any failure that another attempt may not meet: a rank or a host that died, a network that
was gone. It is not after

- status 75: it saved because someone told it to end, the scheduler as a rule, which would tell the next attempt too;
- status 2 of an attempt that was over quickly: wrong options are as wrong the next time;
- two attempts in a row that ended quickly with the same status: the next would as well. Time is the measure, since it
  needs nothing of the program; what was saved meanwhile only the program knows;
- as many restarts within the window as are allowed.

The pause before a restart doubles from one to the next, so that a fault of minutes is outlived; after a long run it
begins anew.
"""

import signal
from collections import deque
from dataclasses import dataclass

from hvdkit.contract import RESUME_STATUS, USAGE_STATUS
from hvdkit.launch.times import seconds

LONGEST_PAUSE_S = 300.0
LONG_RUN_S = 600.0
"""An attempt that ran this long owes nothing to the faults before it."""


@dataclass(frozen=True)
class RestartPolicy:
    """What the user allows."""

    max_restarts: int
    window_s: float | None = None
    """`max_restarts` are allowed within this time; None: in all."""
    first_pause_s: float = 1.0
    quick_failure_s: float = 60.0
    """An attempt that ended sooner got nowhere."""


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt: pause and start again, or give the job up because of `reason`."""

    restart: bool
    pause_s: float = 0.0
    number: int = 0
    """Of the restart, among those that count at the moment."""
    reason: str = ""


class Restarts:
    """The decisions of one job."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._times: deque[float] = deque()
        self._next_pause_s = policy.first_pause_s
        self._quick_status: int | None = None

    def after(self, status: int, ran_s: float, now_s: float) -> Decision:
        """An attempt ended at `now_s` with `status`, which is not 0, `ran_s` after its start."""
        quick = ran_s < self._policy.quick_failure_s
        same, self._quick_status = quick and status == self._quick_status, status if quick else None
        if status == RESUME_STATUS:
            return Decision(False, reason="it saved because it was told to end")
        if status == USAGE_STATUS and quick:
            return Decision(False, reason="status 2 is that of wrong options, which the next attempt would meet again")
        if same:
            within = seconds(self._policy.quick_failure_s)
            return Decision(False, reason=f"two in a row ended alike within {within} (--quick-failure 0 goes on)")
        window_s = self._policy.window_s
        while window_s is not None and self._times and self._times[0] <= now_s - window_s:
            self._times.popleft()
        if len(self._times) >= self._policy.max_restarts:
            within = "" if window_s is None else f" within {seconds(window_s)}"
            return Decision(False, reason=f"all {self._policy.max_restarts} restarts{within} are spent")
        self._times.append(now_s)
        if ran_s >= LONG_RUN_S:
            self._next_pause_s = self._policy.first_pause_s
        pause_s = min(self._next_pause_s, max(LONGEST_PAUSE_S, self._policy.first_pause_s))
        self._next_pause_s = 2 * pause_s
        return Decision(True, pause_s, len(self._times))


def status_text(status: int) -> str:
    """`137 (SIGKILL)`, `75 (saved, to be resumed)`, `1`."""
    if status == RESUME_STATUS:
        return f"{status} (saved, to be resumed)"
    try:
        return f"{status} ({signal.Signals(status - 128).name})" if status > 128 else str(status)
    except ValueError:
        return str(status)
