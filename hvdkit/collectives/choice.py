"""The cheapest valid algorithm for each collective and message length, and why."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from hvdkit.collectives.cost import Curve, Parameters

_SIZES = tuple(2**power for power in range(4, 33))
MARGIN = 0.02
"""An algorithm must be better by this share to take over at the next length: no flapping on noise."""
_DOUBT = 0.5
"""So close to the cheapest, the probe may be wrong, and what is known of the algorithms decides: a probe of a few calls
in a bad moment was seen to find the library's all-reduce quicker for long messages, which then took half as long again.
"""
_LONG_BYTES = 2**20
"""Where no message of this length was probed, for want of time, the same is known of the algorithms."""
_MOVE_LEAST = ("shared_memory", "hierarchical")
"""They move long messages through memory and over the wire least; a probe, whose messages stay in caches, sees less."""


@dataclass(frozen=True)
class Choice:
    """The choice by the cost model with the probed `parameters`: a table of lengths, looked up by bisection."""

    parameters: Parameters
    table: dict[str, tuple[list[int], list[str]]]
    """By collective: lengths in bytes up to which each algorithm is the choice, and their names."""

    def __call__(self, collective: str, nbytes: int) -> str:
        """The name of the algorithm for `collective` with messages of `nbytes` per rank."""
        limits, names = self.table[collective]
        return names[min(bisect.bisect_left(limits, nbytes), len(names) - 1)]

    def explain(self, collective: str, nbytes: int) -> list[tuple[str, float]]:
        """All algorithms with their predicted seconds, the cheapest first."""
        curves = self.parameters.curves
        costs = [(name, curve.seconds(nbytes)) for (kind, name), curve in curves.items() if kind == collective]
        return sorted(costs, key=lambda cost: cost[1])


def choose_all(parameters: Parameters) -> Choice:
    """Choose for all collectives and lengths."""
    table = {}
    for collective in sorted({kind for kind, _ in parameters.curves}):
        curves = {name: curve for (kind, name), curve in parameters.curves.items() if kind == collective}
        limits: list[int] = []
        names: list[str] = []
        for nbytes in _SIZES:
            best = _cheapest(curves, nbytes, names[-1] if names else None)
            if names and names[-1] == best:
                limits[-1] = nbytes
            else:
                limits.append(nbytes)
                names.append(best)
        table[collective] = (limits, names)
    return Choice(parameters, table)


def _cheapest(curves: dict[str, Curve], nbytes: int, at_shorter: str | None) -> str:
    """The algorithm with the least predicted cost; where others are as good, the thrifty one or that `at_shorter`."""
    costs = {name: curve.seconds(nbytes) for name, curve in curves.items()}
    was_probed = max(curve.points[-1][0] for curve in curves.values()) >= _LONG_BYTES
    if (thrifty := thrifty_one(costs, nbytes, doubt=_DOUBT if was_probed else float("inf"))) is not None:
        return thrifty
    if at_shorter is not None and costs[at_shorter] <= min(costs.values()) * (1 + MARGIN):
        return at_shorter
    return min(costs, key=costs.__getitem__)


def thrifty_one(costs: Mapping[str, float], nbytes: float, doubt: float = _DOUBT) -> str | None:
    """For a long message the algorithm that moves least, if its predicted cost is close enough to the least one."""
    if nbytes >= _LONG_BYTES:
        for name in _MOVE_LEAST:
            if name in costs and costs[name] <= min(costs.values()) * (1 + doubt):
                return name
    return None
