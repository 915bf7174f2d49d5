"""The cheapest valid algorithm for each collective and message length, and why."""

import bisect
from dataclasses import dataclass

from hvdkit.collectives.cost import Parameters

_SIZES = tuple(2**power for power in range(4, 33))
MARGIN = 0.02
"""An algorithm must be better by this share to take over at the next length: no flapping on noise."""


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
            best = min(curves, key=lambda name: curves[name].seconds(nbytes))
            if names and curves[names[-1]].seconds(nbytes) <= curves[best].seconds(nbytes) * (1 + MARGIN):
                best = names[-1]
            if names and names[-1] == best:
                limits[-1] = nbytes
            else:
                limits.append(nbytes)
                names.append(best)
        table[collective] = (limits, names)
    return Choice(parameters, table)
