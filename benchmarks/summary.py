"""From the times of all rounds to the numbers that are reported."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.collective import bus_bandwidth, bytes_to_move, triad_bandwidth
from benchmarks.peers import HVDKIT
from benchmarks.rounds import Measured, Outcome


@dataclass(frozen=True)
class Result:
    """One contender at one size."""

    ranks: int
    contender: str
    bytes: int
    rounds: int
    calls: int
    median_s: float
    mean_s: float
    bus_bandwidth_bytes_per_s: float
    """At the median."""
    share_of_bound: float | None
    """Bound over median; None where the triad was not measured."""
    reference_is_times_as_fast: float | None
    """Median over rounds of (its median in the round / the reference's); None where the reference is missing."""
    note: str | None = None
    """See `Measured.note`."""


@dataclass(frozen=True)
class Summary:
    """What one number of ranks gave."""

    outcome: Outcome
    reference: str
    """The contender that the others are compared with: hvdkit's own choice."""
    triad_bytes_per_s: float | None
    results: tuple[Result, ...]

    def sizes(self) -> list[int]:
        """Bytes of the messages, ascending."""
        return sorted({result.bytes for result in self.results})

    def contenders(self) -> list[str]:
        """Those with results, in the order of `Outcome.contenders`."""
        present = {result.contender for result in self.results}
        return [name for name in self.outcome.contenders if name in present]

    def at(self, contender: str, nbytes: int) -> Result | None:
        """The one result, if it is there."""
        return next((item for item in self.results if (item.contender, item.bytes) == (contender, nbytes)), None)

    def bound_s(self, nbytes: int) -> float | None:
        """Seconds that the bytes of a message need at the triad's bandwidth."""
        if self.triad_bytes_per_s is None:
            return None
        return bytes_to_move(self.outcome.collective, nbytes, self.outcome.ranks) / self.triad_bytes_per_s

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ranks": self.outcome.ranks,
            "reference": self.reference,
            "triad_bytes_per_s": self.triad_bytes_per_s,
            "bound_s": {nbytes: self.bound_s(nbytes) for nbytes in self.sizes()},
            "settings": self.outcome.settings,
            "left_out": {name: first_line(reason) for name, reason in self.outcome.left_out.items()},
            "results": [asdict(result) for result in self.results],
        }


def first_line(reason: str) -> str:
    """Why a contender was left out, without the output of its job, which has paths and the names of hosts."""
    return reason.partition("\n")[0]


def summarise(outcome: Outcome) -> Summary:
    """Medians, means, bandwidths and ratios of all that was measured."""
    own = [name for name in outcome.contenders if name.startswith(HVDKIT)]
    reference = next((name for name in own if name.endswith(" auto")), own[0] if own else HVDKIT)
    bandwidth = None
    if outcome.triad_s:
        bandwidth = triad_bandwidth(statistics.median(outcome.triad_s), outcome.ranks)
    references = {item.nbytes: item for item in outcome.measured if item.contender == reference}
    draft = Summary(outcome, reference, bandwidth, ())
    results = tuple(_result(draft, item, references) for item in outcome.measured)
    return Summary(outcome, reference, bandwidth, results)


def _result(draft: Summary, item: Measured, references: Mapping[int, Measured]) -> Result:
    times = [seconds for one in item.rounds_s for seconds in one]
    median = statistics.median(times)
    bound = draft.bound_s(item.nbytes)
    ratio = None
    if item.nbytes in references:
        # A contender's rounds begin with the first and none is missing, so they pair off.
        pairs = zip(item.rounds_s, references[item.nbytes].rounds_s, strict=True)
        ratio = statistics.median(statistics.median(one) / statistics.median(other) for one, other in pairs)
    outcome = draft.outcome
    return Result(
        ranks=outcome.ranks,
        contender=item.contender,
        bytes=item.nbytes,
        rounds=len(item.rounds_s),
        calls=len(times),
        median_s=median,
        mean_s=statistics.mean(times),
        bus_bandwidth_bytes_per_s=bus_bandwidth(outcome.collective, item.nbytes, outcome.ranks, median),
        share_of_bound=None if bound is None else bound / median,
        reference_is_times_as_fast=ratio,
        note=item.note,
    )
