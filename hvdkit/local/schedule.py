"""When to synchronise: how many inner steps each round has.

A schedule is asked once per round, on every rank with the same numbers, so that all get the same answer without
another message.

`Adaptive` takes the shortest round that keeps communication cheap, but none in which the workers part too far. Cost: a
round of a / c steps spends the share c of its time on a synchronisation that takes as long as a steps. Drift: the
workers' distance from their mean, relative to the weights; it grows with the round, and shrinks with the learning
rate, so that a limit of it gives short rounds at first and long ones later. Sources: J. Wang, G. Joshi, "Adaptive
Communication Strategies to Achieve the Best Error-Runtime Trade-off in Local-Update SGD", arXiv:1810.08313; L. Kong et
al., "Consensus Control for Decentralized Deep Learning", arXiv:2102.04828. Rejected: the variance of pseudo-gradients
relative to their mean, which falls as rounds grow longer, since noise averages out within each worker too.
"""

import math
from dataclasses import dataclass, fields
from typing import Protocol

from hvdkit.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """What the ranks measured in a round; the same on all of them."""

    steps: int
    """The round's inner steps."""
    drift: float
    """sqrt(sum_i w_i |theta_i - mean|^2) / |theta|, with weights w_i that sum to 1."""
    step_s: float
    """Of the slowest rank."""
    synchronisation_s: float
    """Of all fragments, lately, without waiting for slow ranks; 0 while unknown."""


class Schedule(Protocol):
    """Says how long rounds are."""

    def first(self, step: int) -> int:
        """The length of a round that begins at `step` when nothing has been measured."""

    def following(self, step: int, measured: Measured) -> tuple[int, str]:
        """The length of the round that begins at `step`, after one that was `measured`, and why ("" for no news)."""


@dataclass(frozen=True)
class Scheduled:
    """Rounds of `lengths[k][1]` steps from step `lengths[k][0]` on; the first entry begins at step 0."""

    lengths: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.lengths]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError(f"sync_every: the steps {starts} must begin with 0 and increase, as in 10@0,50@200")
        if any(length < 1 for _, length in self.lengths):
            raise ConfigError(f"sync_every={self} must be 1 or more steps")

    def __str__(self) -> str:
        pairs = [f"{length}@{start}" for start, length in self.lengths]
        return ",".join(pairs) if len(pairs) > 1 else str(self.lengths[0][1])

    def first(self, step: int) -> int:
        """See `Schedule`."""
        return [length for start, length in self.lengths if start <= step][-1]

    def following(self, step: int, measured: Measured) -> tuple[int, str]:
        """See `Schedule`."""
        length = self.first(step)
        return length, "" if length == measured.steps else f"{length} steps from step {step} on, as scheduled"


@dataclass(frozen=True)
class Adaptive:
    """Rounds of `min` to `max` steps, at most twice or half as long as the one before."""

    min: int = 16
    max: int = 256
    drift: float = 0.1
    """The largest drift that a round should end with."""
    cost: float = 0.05
    """The share of the time that synchronisations may take."""

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ConfigError(f"sync_every={self}: min must be 1 or more, and max no less")
        if not (self.drift > 0 and 0 < self.cost < 1):
            raise ConfigError(f"sync_every={self}: drift must be more than 0, cost between 0 and 1")

    def __str__(self) -> str:
        return f"adaptive:min={self.min},max={self.max},drift={self.drift:g},cost={self.cost:g}"

    def first(self, step: int) -> int:
        """See `Schedule`."""
        return self.min

    def following(self, step: int, measured: Measured) -> tuple[int, str]:
        """See `Schedule`."""
        in_steps = measured.synchronisation_s / measured.step_s if measured.step_s else 0.0
        cheap = round(in_steps / self.cost)
        allowed = math.floor(min(measured.steps * self.drift / measured.drift, 1e9)) if measured.drift else 10**9
        wanted = min(max(min(cheap, allowed), measured.steps // 2), 2 * measured.steps)
        length = min(max(wanted, self.min), self.max)
        drift = f"drift {measured.drift:.2g} where {self.drift:g} is allowed" if measured.drift else "no drift"
        return length, (
            f"{length} steps after {measured.steps}: {drift}; a synchronisation takes as long as {in_steps:.2g} steps, "
            f"{self.cost:.0%} of the time from {cheap} steps on"
        )


def parse_schedule(text: "str | int | Schedule") -> Schedule:
    """The schedule that `text` means: "50", "10@0,50@200", "adaptive", "adaptive:min=10,max=200"; or a schedule.

    Raises ConfigError, naming what there is.
    """
    if hasattr(text, "first") and hasattr(text, "following"):
        return text
    words = str(text)
    try:
        if words.split(":")[0] == "adaptive":
            return _adaptive(words.partition(":")[2])
        if "@" not in words:
            return Scheduled(((0, int(words)),))
        pairs = [entry.split("@") for entry in words.split(",")]
        return Scheduled(tuple((int(start), int(length)) for length, start in pairs))
    except ConfigError:
        raise
    except (KeyError, ValueError):
        raise ConfigError(
            f"sync_every={words!r} must be a number of steps (50), a schedule (10@0,50@200), or adaptive, perhaps with "
            "its options (adaptive:min=16,max=256,drift=0.1,cost=0.05)"
        ) from None


def _adaptive(options: str) -> Adaptive:
    kinds = {item.name: type(getattr(Adaptive, item.name)) for item in fields(Adaptive)}
    pairs = [option.split("=") for option in options.split(",") if option]
    return Adaptive(**{name: kinds[name](value) for name, value in pairs})
