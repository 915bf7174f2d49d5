"""How long the next round is, by the schedule, and how many steps of it each rank does; the same on all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from hvdkit.local.checks import Pace
from hvdkit.local.exchange import Report
from hvdkit.local.pace import inner_steps
from hvdkit.local.schedule import Measured, Schedule


@dataclass(frozen=True)
class NextRound:
    """A round that begins."""

    length: int
    """Its steps, as agreed."""
    own_lengths: list[int]
    """Each rank's steps."""
    news: str
    """Why it has this length, in a sentence; "" for no news."""


def next_round(schedule: Schedule, pace: Pace, length: int, drift: float, reports: Sequence[Report]) -> NextRound:
    """The round after one of `length` steps, which ended with `drift` and all ranks' `reports`."""
    step = max(report.steps for report in reports)
    measured = Measured(
        length, drift, max(report.step_s for report in reports), max(report.synchronisation_s for report in reports)
    )
    following, why = schedule.following(step, measured)
    own_lengths = [following] * len(reports)
    if pace == "proportional":
        own_lengths = inner_steps(following, [report.step_s for report in reports])
    return NextRound(following, own_lengths, f"step {step}  rounds of {why}" if why else "")
