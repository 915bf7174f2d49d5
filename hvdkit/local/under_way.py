"""An exchange from its beginning until its result is used, some steps later perhaps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives import Collectives
from hvdkit.local.buffers import Buffers
from hvdkit.local.exchange import Outcome, Report


class UnderWay:
    """An exchange that was begun; its result is used when `steps_left` more steps are done."""

    def __init__(
        self, number: int, ends_round: bool, is_mean: bool, steps_left: int, buffers: Buffers | None = None,
        outcome: Outcome | None = None,
    ) -> None:  # fmt: skip
        self.number, self.ends_round, self.is_mean, self.buffers = number, ends_round, is_mean, buffers
        self.steps_left = steps_left
        self._outcome = outcome
        self._work: Any = None

    def start(self, work: Callable[[], Outcome], beside: Collectives | None) -> None:
        """Do `work`, or start it on the thread of the collectives `beside` it."""

        def run() -> torch.Tensor:
            self._outcome = work()
            return self._outcome.mean

        if beside is None:
            run()
        else:
            self._work = beside.start(run)

    def wait(self) -> Outcome:
        """Its result; raises on all ranks what the exchange raised."""
        if self._work is not None:
            self._work.wait()
        assert self._outcome is not None
        return self._outcome

    def state_dict(self) -> dict[str, Any]:
        """The result, waited for, and when it is due."""
        outcome = self.wait()
        return {
            "place": [self.number, self.ends_round, self.is_mean, self.steps_left],
            "mean": outcome.mean,
            "reports": [vars(report).copy() for report in outcome.reports],
            "measured": [outcome.bytes_sent, outcome.seconds],
            "buffers": None if self.buffers is None else self.buffers.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], buffers: Sequence[torch.Tensor]) -> "UnderWay":
        """The inverse of `state_dict`."""
        number, ends_round, is_mean, steps_left = state["place"]
        kept = None if state["buffers"] is None else Buffers(buffers, state["buffers"])
        reports = [Report(**report) for report in state["reports"]]
        bytes_sent, seconds = state["measured"]
        outcome = Outcome(state["mean"].clone(), reports, bytes_sent, seconds)
        return cls(number, ends_round, is_mean, steps_left, kept, outcome)
