"""One synchronisation of one fragment: the ranks' reports, then the weighted mean of their pseudo-gradients.

Reports go first, all to all: they tell how much each rank's work weighs, whether its numbers are finite, and what was
measured. Everything that the ranks have to decide alike they decide from these, so that no further message is needed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import HvdkitError
from hvdkit.local.buffers import Buffers
from hvdkit.optim.compression import BucketCompression


@dataclass(frozen=True)
class Report:
    """What a rank tells the others when a fragment is synchronised."""

    weight: float
    """Tokens (or steps) since this fragment was synchronised last."""
    distance: float
    """The norm of its pseudo-gradient."""
    steps: int
    """Inner steps that it has done in all."""
    step_s: float
    """Median time of an inner step since its last report; 0 without any."""
    rate: float
    """Tokens (or steps) per second of its inner steps in the last round; 0 while unknown."""
    synchronisation_s: float
    """What an exchange of all fragments takes once all ranks are there, lately; 0 while unknown."""
    waits: bool
    """Whether it makes no steps until all ranks wait."""


@dataclass(frozen=True)
class Outcome:
    """What an exchange gives every rank; the first two are the same on all."""

    mean: torch.Tensor
    """(n,)"""
    reports: list[Report]
    bytes_sent: float
    seconds: float
    """Without waiting for slow ranks."""

    @property
    def shares(self) -> list[float]:
        """Each rank's weight, as a share of 1; zeros where nobody has done anything."""
        total = sum(report.weight for report in self.reports)
        return [report.weight / total if total else 0.0 for report in self.reports]


def norm(flat: torch.Tensor) -> float:
    """The Euclidean norm, added up in float64: NaN or infinite if a value is."""
    return float(torch.linalg.vector_norm(flat, dtype=torch.float64))


def exchange(
    flat: torch.Tensor, mine: Report, sums: BucketCompression, buffers: Buffers | None, name: str,
    collectives: Collectives,
) -> Outcome:  # fmt: skip
    """The mean of all ranks' `flat`, (n,), in place, weighted as they report. Collective.

    Sends what `sums` sends of `flat`, and some hundred bytes to each rank. Raises HvdkitError on all ranks, before
    any of their state changes, if a rank's distance is not finite.
    """
    reports: list[Report] = collectives.gather_objects(mine, f"{name}.report")
    _check_finite(reports)
    begun = time.perf_counter()
    outcome = Outcome(flat, reports, 0.0, 0.0)
    share = outcome.shares[collectives.index]
    sent = 0.0
    if any(outcome.shares):
        sent = sums.sum_(flat.mul_(share), name, collectives)
        if buffers is not None:
            buffers.combine(share, collectives)
    return Outcome(flat, reports, sent, time.perf_counter() - begun)


def _check_finite(reports: Sequence[Report]) -> None:
    lost = [rank for rank, report in enumerate(reports) if not report.distance < float("inf")]
    if lost:
        raise HvdkitError(
            f"local updates: the weights of rank {', '.join(map(str, lost))} of {len(reports)} hold NaN or infinity "
            f"after {max(report.steps for report in reports)} steps; nothing was synchronised: lower the learning "
            "rate, clip gradients, or look at that rank's data"
        )
