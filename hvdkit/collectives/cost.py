"""What each algorithm is predicted to cost: latency, bandwidth, and what it puts on the wire between nodes.

The time of an algorithm is that of short messages (latency: its steps, barriers and calls), growing through the
lengths at which it was probed, and beyond the longest of these by bytes over bandwidth. The bandwidth is what the probe
saw of memory and the library; between nodes it is at most what the wire allows, given how often an algorithm sends
each byte out of a node:

  hierarchical  2(N-1)/N    of n bytes, N nodes: once per node, every local rank a slice of it
  ring          2(p-1)/p    p ranks in order of nodes: one rank of each node sends to the next node
  tree          2 ceil(log2 N)   the whole message, at every level that crosses nodes, and back

A reduce-scatter is half of that; so is an all-gather, whose n bytes are those of all ranks together.

Source of the model: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in
MPICH", IJHPCA 2005 (alpha-beta); here alpha and beta are measured per algorithm, since on one machine caches decide.
"""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Point = tuple[int, float]
"""(bytes, seconds)."""

_UNPROBED_S_PER_BYTE = 1e-9
_LEAST_S_PER_BYTE = 2e-11
"""No memory is faster; less comes of a busy machine."""
_FORMAT = 1


@dataclass(frozen=True)
class Curve:
    """The time of one algorithm for one collective by message length."""

    points: tuple[Point, ...]
    """Probed, with rising bytes."""
    wire_s_per_byte: float = 0.0
    """At least so much for every byte beyond the longest probed, because of the wire."""
    is_pipelined: bool = False
    """Only longer messages than the longest probed have parts on the wire and in memory at the same time."""

    def seconds(self, nbytes: int) -> float:
        """Predicted time of a message of `nbytes`."""
        sizes = [size for size, _ in self.points]
        place = bisect.bisect_left(sizes, nbytes)
        if place == 0:
            return self.points[0][1]
        if place == len(sizes):
            (last_size, last_s) = self.points[-1]
            return last_s + (nbytes - last_size) * self.s_per_byte
        (low, low_s), (high, high_s) = self.points[place - 1], self.points[place]
        return low_s + (high_s - low_s) * (nbytes - low) / (high - low)

    @property
    def latency_s(self) -> float:
        """Time of the shortest message."""
        return self.points[0][1]

    @property
    def s_per_byte(self) -> float:
        """Time that each further byte of a long message costs."""
        if len(self.points) < 2 or self.is_pipelined:
            return max(self.wire_s_per_byte, _UNPROBED_S_PER_BYTE)
        (low, low_s), (high, high_s) = self.points[-2], self.points[-1]
        return max((high_s - low_s) / (high - low), self.wire_s_per_byte, _LEAST_S_PER_BYTE)


@dataclass(frozen=True)
class Parameters:
    """What the probe found; identical on all ranks."""

    nodes: tuple[tuple[int, ...], ...]
    meeting_s: float
    """What a collective's check that all ranks want the same costs; in every curve already."""
    barrier_s: float
    """A barrier of the ranks of a node."""
    wire_latency_s: float | None = None
    """A small message between two nodes and back, halved; None on one node."""
    wire_bytes_per_s: float | None = None
    """What a node sends to the next one while it receives as much."""
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    """By (collective, algorithm)."""
    probe_s: float = 0.0
    """How long the probe took."""

    def cost(self, collective: str, algorithm: str, nbytes: int) -> float:
        """Predicted seconds."""
        return self.curves[collective, algorithm].seconds(nbytes)

    def fits(self, nodes: tuple[tuple[int, ...], ...], offered: Iterable[tuple[str, str]]) -> bool:
        """Whether they hold for ranks that lie on `nodes` and can do `offered`, pairs of collective and algorithm."""
        return self.nodes == nodes and self.curves.keys() == set(offered)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes exactly these parameters of, after a way through JSON too."""
        curves: dict[str, dict[str, Any]] = {}
        for (collective, algorithm), curve in self.curves.items():
            curves.setdefault(collective, {})[algorithm] = {
                "bytes_and_seconds": [list(point) for point in curve.points],
                "wire_s_per_byte": curve.wire_s_per_byte,
                "is_pipelined": curve.is_pipelined,
            }
        return {
            "format": _FORMAT,
            "nodes": [list(ranks) for ranks in self.nodes],
            "meeting_s": self.meeting_s,
            "barrier_s": self.barrier_s,
            "wire_latency_s": self.wire_latency_s,
            "wire_bytes_per_s": self.wire_bytes_per_s,
            "probe_s": self.probe_s,
            "curves": curves,
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Parameters":
        """The inverse of `to_json`. Raises ValueError if `saved` was not made by it."""
        if saved.get("format") != _FORMAT:
            raise ValueError(f"parameters of the cost model: format {saved.get('format')!r} is not {_FORMAT}")
        try:
            curves = {
                (collective, algorithm): Curve(
                    tuple((int(nbytes), float(seconds)) for nbytes, seconds in curve["bytes_and_seconds"]),
                    curve["wire_s_per_byte"],
                    curve["is_pipelined"],
                )
                for collective, by_algorithm in saved["curves"].items()
                for algorithm, curve in by_algorithm.items()
            }
            return cls(
                tuple(tuple(ranks) for ranks in saved["nodes"]),
                saved["meeting_s"],
                saved["barrier_s"],
                saved["wire_latency_s"],
                saved["wire_bytes_per_s"],
                curves,
                saved["probe_s"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"parameters of the cost model: {error!r} in what was saved") from error


def wire_factor(collective: str, algorithm: str, nodes: int, ranks: int) -> float:
    """How many times the bytes of a message a collective sends out of the busiest node; 0 where there is one.

    For algorithms that are not known, such as the library's, what none can do without: that of hierarchical. 0 for
    collectives with a root, of which the probe alone knows.
    """
    if nodes == 1 or collective in ("broadcast", "reduce"):
        return 0.0
    if algorithm == "tree":
        return 2.0 * math.ceil(math.log2(nodes))
    senders = ranks if algorithm == "ring" else nodes
    half = (senders - 1) / senders
    return {"all_reduce": 2 * half, "reduce_scatter": half, "all_gather": ranks * half}[collective]
