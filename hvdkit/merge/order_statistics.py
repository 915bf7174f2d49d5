"""The k-th largest magnitudes of tensors that are seen block by block, exactly.

The bits of a float without its sign sort as the float does. So a first pass counts how often each value of the upper 16
bits occurs, which tells those of the k-th largest; the next pass counts the next 16 bits of the elements that have
these, and so on: two passes for float32, four for float64, and 64 K counts of memory.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

Passes = Callable[[], Iterable[torch.Tensor]]
"""Each call goes through the blocks of M tensors once more: (M, n), float32 or float64, rows contiguous."""

_WITHOUT_SIGN, _ALL = 0x7FFF, 0xFFFF


def order_statistics(passes: Passes, ranks: Sequence[Sequence[int]], dtype: torch.dtype) -> list[list[float]]:
    """The magnitudes of rank `ranks[i][j]` (1 for the largest) of tensor i; no rank may exceed its element count."""
    searches = [[_Search(rank) for rank in ranks_of_one] for ranks_of_one in ranks]
    levels = dtype.itemsize // 2
    for _ in range(levels if any(ranks) else 0):
        for block in passes():
            for row, searches_of_one in zip(block, searches, strict=True):
                digits = row.view(torch.int16).view(-1, levels) if searches_of_one else row
                for search in searches_of_one:
                    search.count(digits)
        for searches_of_one in searches:
            for search in searches_of_one:
                search.narrow()
    return [[search.value(dtype) for search in row] for row in searches]


def by_sorting(vectors: torch.Tensor, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
    """The same of short tensors that are here whole: (M, n)."""
    found = []
    for vector, ranks_of_one in zip(vectors, ranks, strict=True):
        by_size = vector.abs().sort(descending=True).values if ranks_of_one else vector
        found.append([float(by_size[rank - 1]) for rank in ranks_of_one])
    return found


class _Search:
    """What is known of one order statistic: its upper digits of 16 bits, and its rank among the elements with these."""

    def __init__(self, rank: int) -> None:
        self._digits: list[int] = []
        self._rank = rank
        self._counts = torch.zeros(_ALL + 1, dtype=torch.int64)

    def count(self, digits: torch.Tensor) -> None:
        """Count the next digit of those elements of `digits`, (n, levels) int16, the upper one last, that fit."""
        known = len(self._digits)
        upper = digits[:, -1].bitwise_and(_WITHOUT_SIGN)
        if known:
            fits = upper == self._digits[0]
            for level in range(1, known):
                fits &= digits[:, -1 - level] == _signed(self._digits[level])
            # Those that don't fit are counted too, in a place of their own: rooms of changing lengths for those that do
            # would leave the heap in pieces.
            following = digits[:, -1 - known].to(torch.int32).bitwise_and_(_ALL).masked_fill_(~fits, _ALL + 1)
        else:
            following = upper
        self._counts += torch.bincount(following, minlength=_ALL + 2)[: _ALL + 1]

    def narrow(self) -> None:
        """Find the next digit from the counts of a whole pass."""
        from_above = self._counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, self._rank))
        self._rank -= int(from_above[place - 1]) if place else 0
        self._digits.append(_ALL - place)
        self._counts.zero_()

    def value(self, dtype: torch.dtype) -> float:
        """The magnitude, once all digits are known."""
        digits = torch.tensor([_signed(digit) for digit in reversed(self._digits)], dtype=torch.int16)
        return float(digits.view(dtype)[0])


def _signed(digit: int) -> int:
    return digit - 0x10000 if digit > _WITHOUT_SIGN else digit
