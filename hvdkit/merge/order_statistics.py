"""The k-th largest magnitudes of tensors that are seen block by block, exactly.

The bits of a float without its sign sort as the float does. So a first pass counts the values of the upper 16 bits,
which tells the upper bits of the k-th largest; the next pass counts the next 16 bits of the elements that have these,
and so on: two passes for float32, four for float64, and 64 K counts of memory.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch

Passes = Callable[[], Iterable[torch.Tensor]]
"""Each call goes through the blocks of M tensors once more: (M, n), float32 or float64 like all others."""

_BITS = 16


def order_statistics(passes: Passes, ranks: Sequence[Sequence[int]], dtype: torch.dtype) -> list[list[float]]:
    """The magnitudes of rank `ranks[i][j]` (1 for the largest) of tensor i; no rank may exceed its element count."""
    whole = torch.int32 if dtype == torch.float32 else torch.int64
    searches = [[_Search(rank) for rank in ranks_of_one] for ranks_of_one in ranks]
    edges = [*range(torch.iinfo(whole).bits - 1, 0, -_BITS), 0]
    if not any(map(len, ranks)):
        return [[] for _ in ranks]
    for upper, lower in pairwise(edges):
        counts = [[torch.zeros(1 << (upper - lower), dtype=torch.int64) for _ in row] for row in searches]
        for block in passes():
            for row, searches_of_one, counts_of_one in zip(block, searches, counts, strict=True):
                _count(row.view(whole), searches_of_one, counts_of_one, upper, lower)
        for searches_of_one, counts_of_one in zip(searches, counts, strict=True):
            for search, count in zip(searches_of_one, counts_of_one, strict=True):
                search.narrow(count, upper - lower)
    return [[_value(search.prefix, whole, dtype) for search in row] for row in searches]


class _Search:
    """What is known of one order statistic: the upper bits, and its rank among the elements that share them."""

    def __init__(self, rank: int) -> None:
        self.prefix, self.rank = 0, rank

    def narrow(self, counts: torch.Tensor, bits: int) -> None:
        """Find the next `bits` bits, given how often each value of them occurs."""
        from_above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, self.rank))
        self.rank -= int(from_above[place - 1]) if place else 0
        self.prefix = (self.prefix << bits) | (len(counts) - 1 - place)


def _count(
    bits: torch.Tensor, searches: Sequence[_Search], counts: Sequence[torch.Tensor], upper: int, lower: int
) -> None:
    magnitude = bits & torch.iinfo(bits.dtype).max
    is_first = upper == torch.iinfo(bits.dtype).bits - 1
    digits = magnitude >> lower
    for number, (search, count) in enumerate(zip(searches, counts, strict=True)):
        if is_first and number:  # all searches of a tensor begin alike
            count.copy_(counts[0])
            continue
        chosen = digits if is_first else digits[(magnitude >> upper) == search.prefix] & ((1 << (upper - lower)) - 1)
        count.add_(torch.bincount(chosen, minlength=len(count)))


def _value(bits: int, whole: torch.dtype, dtype: torch.dtype) -> float:
    return float(torch.tensor([bits], dtype=whole).view(dtype)[0])
