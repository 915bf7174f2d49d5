"""Work in proportion to speed, as the ranks measured it: the fast ones do not wait for the slow."""

from collections.abc import Sequence

_SLOWEST = 1 / 16
"""Of the fastest: no rank is given less, so that its speed goes on being measured."""


def inner_steps(length: int, step_seconds: Sequence[float]) -> list[int]:
    """How many steps each rank does in a round in which the fastest does `length`: at least 1.

    `step_seconds` are each rank's seconds per step; 0 (not measured) counts as the fastest.
    """
    measured = [seconds for seconds in step_seconds if seconds > 0]
    if not measured:
        return [length] * len(step_seconds)
    fastest = min(measured)
    return [max(1, round(length * (fastest / seconds if seconds > 0 else 1.0))) for seconds in step_seconds]


def shares_of_work(rates: Sequence[float], before: Sequence[float] | None = None) -> list[float] | None:
    """Each rank's share of a batch, relative to 1 for the fastest; None while nothing is known.

    `rates` are tokens per second; a rank without one (0) keeps its share from `before`, or gets 1.
    """
    fastest = max(rates)
    if not fastest > 0:
        return None if before is None else list(before)
    kept = before or [1.0] * len(rates)
    return [max(rate / fastest, _SLOWEST) if rate > 0 else kept[rank] for rank, rate in enumerate(rates)]
