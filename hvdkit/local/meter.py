"""What a rank measures of a round: the time of its steps and exchanges, and how far the workers drift apart."""

import statistics
import time
from collections.abc import Sequence

from hvdkit.local.exchange import Outcome


class Meter:
    """The measurements of one rank, of the present round and the last exchanges."""

    def __init__(self, fragments: int) -> None:
        self.exchange_s = [0.0] * fragments
        """Of each fragment's exchanges, a mean that halves the weight of each with the next."""
        self.step_s = self.rate = 0.0
        """Of the last round: median seconds of a step, and tokens (or steps) per second of them."""
        self._seconds: list[float] = []
        self._work = 0.0
        self._begun = time.perf_counter()
        self._squares = [0.0, 0.0]

    def resume(self) -> None:
        """The time of a step begins now."""
        self._begun = time.perf_counter()

    def step(self, work: float) -> None:
        """A step of `work` tokens (or 1) is done."""
        self._seconds.append(time.perf_counter() - self._begun)
        self._work += work

    def end_round(self) -> None:
        """From here on steps belong to the next round."""
        if self._seconds:
            self.step_s = statistics.median(self._seconds)  # which an evaluation between two steps does not change
            self.rate = self._work / (self.step_s * len(self._seconds))
        self._seconds, self._work = [], 0.0

    def add(self, number: int, outcome: Outcome, mean_norm: float, outer_norm: float) -> None:
        """Count a fragment's exchange, and its part of the drift: sum_i w_i |d_i - d|^2 = sum_i w_i |d_i|^2 - |d|^2."""
        self.exchange_s[number] = ((self.exchange_s[number] or outcome.seconds) + outcome.seconds) / 2
        pairs = zip(outcome.shares, outcome.reports, strict=True)
        spread = sum(share * report.distance**2 for share, report in pairs) - mean_norm**2
        self._squares[0] += max(0.0, spread)
        self._squares[1] += outer_norm**2

    def take_drift(self) -> float:
        """The drift of the fragments since the last call, equal on all ranks: see `schedule.Measured`."""
        spread, whole = self._squares
        self._squares = [0.0, 0.0]
        return float((spread / whole) ** 0.5) if whole else 0.0

    def state_dict(self) -> dict[str, Sequence[float]]:
        """What a resumed run goes on with."""
        return {"squares": list(self._squares), "exchange_s": list(self.exchange_s)}

    def load_state_dict(self, state: dict[str, Sequence[float]]) -> None:
        """Go on from a `state_dict()`."""
        self._squares, self.exchange_s = list(state["squares"]), list(state["exchange_s"])
