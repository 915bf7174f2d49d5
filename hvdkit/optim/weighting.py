"""Weights of the ranks' gradients: grad = sum_i w_i grad_i / sum_i w_i.

A rank's weight of a step is `fixed` (its capability, 1 by default) times the number of items, usually valid tokens,
that `weigh` counted over its micro-batches. `weigh` multiplies the mean loss of a micro-batch by its count, so the
accumulated local gradient is already a sum over items, and dividing the ranks' sum by the total count gives the
gradient of one process on the union of the batches.

Counts are large and 16-bit floats small (70000 is infinite in float16), so gradients are kept near the size of a
mean, in a `unit`: a power of 2 near the ranks' mean weight of the step before, the same on all ranks (in the very
first step each rank's own first count, converted before it is sent). Powers of 2 leave every mantissa as it is.
"""

import math
from dataclasses import dataclass

import torch

from hvdkit.errors import HvdkitError


@dataclass
class Weighting:
    """This rank's weight of the step that is being accumulated."""

    fixed: float = 1.0
    counted: float = 0.0
    unit: float | None = None
    """What counts are measured in; None until the first count."""
    is_counting: bool = False
    ran_uncounted_backward: bool = False

    def weigh(self, loss: torch.Tensor, count: float) -> torch.Tensor:
        """Add `count` to this step's weight and return `loss * count / unit`; `loss` is a mean over `count` items."""
        count = float(count)
        if not 0 <= count < float("inf"):
            raise ValueError(f"weigh: count={count} is not a weight; it must be a finite number, 0 or more")
        if self.unit is None and count > 0:
            self.unit = power_of_2_near(count)
        self.is_counting = True
        self.counted += count
        return loss * (count / (self.unit or 1.0))

    @property
    def factor(self) -> float:
        """What this rank's accumulated gradient is multiplied by to be its term of the sum over ranks."""
        return self.fixed * (self.unit or 1.0) if self.is_counting else self.fixed

    @property
    def is_silent(self) -> bool:
        """Whether this rank's gradients count for nothing; they are then sent as zeros, whatever they hold."""
        return self.fixed == 0 or (self.is_counting and self.counted == 0)

    def restart(self) -> None:
        """Begin the next step."""
        self.counted, self.is_counting, self.ran_uncounted_backward = 0.0, False, False

    def encode(self) -> list[float]:
        """What this rank tells the others, to be summed over ranks: FIELDS numbers."""
        return [
            float(self.is_counting),
            float(self.ran_uncounted_backward),
            self.fixed * self.counted,
        ]


FIELDS = 3


def power_of_2_near(number: float) -> float:
    """The largest power of 2 that is not above `number` (> 0)."""
    return 2.0 ** (math.frexp(number)[1] - 1)


@dataclass(frozen=True)
class Total:
    """The ranks' weights together."""

    divisor: float
    """What the summed gradients are divided by."""
    unit: float | None
    """The unit of the next step; None where nobody counted."""


def combine(summed: torch.Tensor, fixed_total: float) -> Total:
    """The total from the ranks' summed `encode()`: (FIELDS,) float64.

    `fixed_total` is the sum of all ranks' fixed weights. Raises HvdkitError, on all ranks alike, if some ranks
    weighed their loss and others ran backward without.
    """
    counting, uncounted, total = summed.tolist()
    if not counting:
        return Total(fixed_total or 1.0, None)
    if uncounted:
        raise HvdkitError(
            f"{int(counting)} ranks weighed their loss with optimizer.weigh() in this step and {int(uncounted)} ran a "
            "backward() without: use weigh() on every rank (with the count of its items) and in every backward, or on "
            "none"
        )
    return Total(total, power_of_2_near(total / counting)) if total else Total(1.0, None)
