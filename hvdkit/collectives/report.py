"""What `hvdkit collectives` shows: the ranks, the probed parameters, and the algorithms' times for each message.

A `Row` is one collective and message length; `as_text` writes all of them as tables, `as_json` as one object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hvdkit.collectives.cost import Parameters

CLOSE = 1.10
"""The chosen algorithm counts as right if it takes at most so many times the time of the best one."""
_WIDTH = 14


@dataclass(frozen=True)
class Row:
    """One collective with messages of `nbytes` per rank."""

    collective: str
    nbytes: int
    chosen: str
    predicted_s: Mapping[str, float]
    """By algorithm."""
    measured_s: Mapping[str, float] = field(default_factory=dict)
    """By algorithm; empty if nothing was measured."""

    @property
    def measured_best(self) -> str | None:
        """The algorithm that took the least time."""
        return min(self.measured_s, key=lambda name: self.measured_s[name]) if self.measured_s else None

    @property
    def ratio(self) -> float | None:
        """The chosen one's time over the best one's."""
        best = self.measured_best
        return self.measured_s[self.chosen] / self.measured_s[best] if best else None

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        ratio = self.ratio
        return {
            "collective": self.collective,
            "nbytes": self.nbytes,
            "chosen": self.chosen,
            "predicted_s": dict(self.predicted_s),
            "measured_s": dict(self.measured_s),
            "measured_best": self.measured_best,
            "chosen_over_best": ratio,
            "is_close": None if ratio is None else ratio <= CLOSE,
        }


@dataclass(frozen=True)
class Report:
    """All that is shown."""

    parameters: Parameters
    rows: list[Row]
    absent: Mapping[str, Mapping[str, str]]
    """By collective: the algorithms that cannot do it here, and why."""

    def as_json(self) -> dict[str, Any]:
        """One JSON object; times in seconds, lengths in bytes."""
        return {
            "ranks": sum(map(len, self.parameters.nodes)),
            "parameters": self.parameters.to_json(),
            "rows": [row.as_json() for row in self.rows],
            "absent": {collective: dict(reasons) for collective, reasons in self.absent.items()},
        }

    def as_text(self) -> str:
        """For people."""
        lines = [_topology(self.parameters.nodes), _parameters(self.parameters), ""]
        lines += ['Times of one call; * marks the algorithm that strategy="auto" means.', ""]
        for collective in dict.fromkeys(row.collective for row in self.rows):
            rows = [row for row in self.rows if row.collective == collective]
            lines += [*_table(collective, rows), *_absences(self.absent.get(collective, {})), ""]
        return "\n".join([*lines, *self._summary()]).rstrip()

    def _summary(self) -> list[str]:
        ratios = [row.ratio for row in self.rows if row.ratio is not None]
        if not ratios:
            return []
        close = sum(ratio <= CLOSE for ratio in ratios)
        return [
            f"The chosen algorithm was within {CLOSE - 1:.0%} of the measured best in {close} of {len(ratios)} cases."
        ]


def _topology(nodes: tuple[tuple[int, ...], ...]) -> str:
    ranks = sum(map(len, nodes))
    if len(nodes) == 1:
        return f"{ranks} ranks, all on one node, where they share memory."
    lines = [f"{ranks} ranks on {len(nodes)} nodes:"]
    lines += [f"  node {number}: {_members(members)}" for number, members in enumerate(nodes)]
    return "\n".join(lines)


def _members(ranks: tuple[int, ...]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def _parameters(parameters: Parameters) -> str:
    lines = [
        f"The probe took {format_seconds(parameters.probe_s)}. It found:",
        f"  {format_seconds(parameters.meeting_s):>8}  for the ranks to agree on what they do (in every time below)",
        f"  {format_seconds(parameters.barrier_s):>8}  for a barrier of the ranks of a node",
    ]
    if parameters.wire_latency_s is not None and parameters.wire_bytes_per_s is not None:
        rate = f"{parameters.wire_bytes_per_s / 1e6:,.0f} MB/s"
        lines += [
            f"  {format_seconds(parameters.wire_latency_s):>8}  for a byte from node to node",
            f"  {rate:>8}  from node to node, each way",
        ]
    return "\n".join(lines)


def _table(collective: str, rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in (*row.predicted_s, *row.measured_s)))
    lines = [f"{collective:<28}" + "".join(f"{name:>{_WIDTH}}" for name in names)]
    for row in rows:
        lines.append(f"  {format_bytes(row.nbytes):>8}  predicted       " + _cells(row, names, row.predicted_s))
        if row.measured_s:
            lines.append(f"  {'':>8}  measured        {_cells(row, names, row.measured_s)}  {_verdict(row)}")
    return lines


def _cells(row: Row, names: list[str], seconds: Mapping[str, float]) -> str:
    cells = []
    for name in names:
        mark = "*" if name == row.chosen else ""
        cells.append(f"{mark}{format_seconds(seconds[name])}" if name in seconds else "-")
    return "".join(f"{cell:>{_WIDTH}}" for cell in cells)


def _verdict(row: Row) -> str:
    if row.ratio is None or row.measured_best == row.chosen:
        return "best chosen"
    if row.ratio <= CLOSE:
        return f"{row.measured_best} is best, the chosen one within {CLOSE - 1:.0%}"
    return f"{row.measured_best} is best, the chosen one takes {row.ratio:.2f} times as long"


def _absences(reasons: Mapping[str, str]) -> list[str]:
    return [f"  no {name}: {why}" for name, why in reasons.items()]


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def format_bytes(nbytes: int) -> str:
    """In powers of 1024, where it is a multiple of one."""
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if nbytes >= scale and nbytes % scale == 0:
            return f"{nbytes // scale} {unit}"
    return f"{nbytes} B"
