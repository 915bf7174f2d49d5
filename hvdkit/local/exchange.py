"""One synchronisation of one fragment: the ranks' reports, then the weighted mean of their pseudo-gradients.

Reports go first, all to all: they tell how much each rank's work weighs, whether its numbers are finite, and what was
measured. Everything that the ranks have to decide alike they decide from these, so that no further message is needed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import DivergenceError, HvdkitError
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
    exchange: str = ""
    """Which one this is: the `Rounds` object that it belongs to, and its number there."""
    counts: bool | None = None
    """Whether its steps are counted (see `Rounds.count`); None while it has made none."""


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

    Sends what `sums` sends of `flat`, and some hundred bytes to each rank. Raises on all ranks, before any of their
    state changes, DivergenceError if they are not at the same exchange or only some count, and HvdkitError if a rank's
    distance is not finite.
    """
    reports: list[Report] = collectives.gather_objects(mine, f"{name}.report")
    _check_same(reports)
    _check_finite(reports)
    begun = time.perf_counter()
    outcome = Outcome(flat, reports, 0.0, 0.0)
    share = outcome.shares[collectives.index]
    sent = 0.0
    if any(outcome.shares):
        sent = sums.sum_(flat.mul_(share), name, collectives)
        if buffers is not None:
            buffers.combine(share, f"{name}.buffers", collectives)
    return Outcome(flat, reports, sent, time.perf_counter() - begun)


def _check_same(reports: Sequence[Report]) -> None:
    for rank, report in enumerate(reports):
        if report.exchange != reports[0].exchange:
            raise DivergenceError(
                f"local updates: rank 0 is at {reports[0].exchange}, rank {rank} at {report.exchange}; with several in "
                "a program every rank must do as many steps within each, in one order"
            )
    counting = {report.counts: rank for rank, report in enumerate(reports)}
    if True in counting and False in counting:
        raise DivergenceError(
            f"local updates: rank {counting[True]} calls count(), rank {counting[False]} does not; every rank must "
            "count its tokens in every step, or none"
        )


def _check_finite(reports: Sequence[Report]) -> None:
    lost = [rank for rank, report in enumerate(reports) if not report.distance < float("inf")]
    if lost:
        raise HvdkitError(
            f"local updates: the weights of rank {', '.join(map(str, lost))} of {len(reports)} hold NaN or infinity "
            f"after {max(report.steps for report in reports)} steps; nothing was synchronised: lower the learning "
            "rate, clip gradients, or look at that rank's data"
        )
