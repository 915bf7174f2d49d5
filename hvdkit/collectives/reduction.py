"""What a reduction computes: its operation, its factors, and the arithmetic of each dtype.

sum_j factors[j] * x_j covers the sum, the average (1/p each) and the weighted average (w_j / sum w). Each rank's factor
is applied while its values are copied or widened anyway, so that averaging costs no pass over memory of its own.
16-bit floats are added in float32; everything else in its own dtype. Terms are added in a fixed order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

PlainOp = Literal["sum", "min", "max", "product"]

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
REDUCIBLE = (*SIXTEEN_BIT, torch.float32, torch.float64, *_INTEGERS)
MOVABLE = (*REDUCIBLE, torch.bool, torch.complex64, torch.complex128)

_COMBINE: dict[PlainOp, Callable[..., torch.Tensor]] = {
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
    "product": torch.mul,
}


@dataclass(frozen=True)
class Reduction:
    """One reduction over the ranks of a group."""

    op: PlainOp = "sum"
    factors: tuple[float, ...] | None = None
    """One per rank, for sums of floating-point values; None for all 1."""
    divisor: int = 1
    """What a sum of integers is divided by at the end, rounded towards zero."""

    def factor(self, index: int) -> float:
        """What the values of rank `index` are multiplied by."""
        return 1.0 if self.factors is None else self.factors[index]

    def over(self, indices: Sequence[int]) -> "Reduction":
        """The part of it that the ranks `indices` do among themselves; the division comes at the very end."""
        factors = None if self.factors is None else tuple(self.factors[index] for index in indices)
        return Reduction(self.op, factors)

    def combine(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        """Put `one` (op) `other` into `out`."""
        _COMBINE[self.op](one, other, out=out)

    def finish(self, data: torch.Tensor) -> None:
        """What is left to do when all ranks' values are combined in `data`."""
        if self.divisor != 1:
            data.div_(self.divisor, rounding_mode="trunc")


def reduction_for(op: str, size: int, dtype: torch.dtype, weights: Sequence[float] | None = None) -> Reduction:
    """The reduction that `op` means over `size` ranks: sum, average, min, max or product.

    `weights` (one per rank) make the average sum_j w_j x_j / sum_j w_j and the sum sum_j w_j x_j. Raises ValueError for
    weights that are negative, not finite, all zero, or do not go with `op` or an integer dtype.
    """
    if op not in ("sum", "average", "min", "max", "product"):
        raise ValueError(f"op={op!r} is not one of sum, average, min, max, product")
    if weights is not None:
        _check_weights(weights, op, size, dtype)
        total = sum(weights) if op == "average" else 1.0
        return Reduction("sum", tuple(weight / total for weight in weights))
    if op != "average":
        return Reduction(op)  # type: ignore[arg-type]
    if not dtype.is_floating_point:
        return Reduction("sum", divisor=size)
    return Reduction("sum", (1 / size,) * size)


def _check_weights(weights: Sequence[float], op: str, size: int, dtype: torch.dtype) -> None:
    if op not in ("sum", "average"):
        raise ValueError(f"weights go with sum and average, not with op={op!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"weights need a floating-point dtype, not {dtype}")
    if len(weights) != size or not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights={list(weights)} must be {size} finite numbers, 0 or more")
    if op == "average" and not sum(weights):
        raise ValueError("weights of an average must not all be 0")


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of `dtype` are added."""
    return torch.float32 if dtype in SIXTEEN_BIT else dtype


def split_evenly(count: int, parts: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cut range(count) into `parts` ranges (start, stop), all but the last of one length: a multiple of `multiple`."""
    each = -(-count // parts)
    each = -(-each // multiple) * multiple
    return [(min(number * each, count), min((number + 1) * each, count)) for number in range(parts)]


def starts_of(counts: Sequence[int]) -> list[int]:
    """Where each part begins when parts of these lengths lie one after another."""
    starts, start = [], 0
    for count in counts:
        starts.append(start)
        start += count
    return starts


def rounds(counts: Sequence[int], itemsize: int, block_bytes: int) -> list[tuple[int, list[int]]]:
    """Cut parts of the lengths `counts` into rounds: where the round begins in each, and each part's length in it."""
    step = max(1, block_bytes // itemsize)
    return [(first, [max(0, min(step, count - first)) for count in counts]) for first in range(0, max(counts), step)]
