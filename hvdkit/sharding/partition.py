"""How parameters are cut over ranks: in flats, each a large parameter or several small ones one after another.

Every flat is cut in one part per rank, as Horovod cuts what it scatters: of equal length, one element more on the first
ranks. So every rank holds 1/N of everything that lies in memory together, and needs 1/N of each message. A rank's part
of a parameter is a `Piece`, a one-dimensional tensor that an elementwise optimizer steps like a whole parameter. For
optimizers that need whole matrices every parameter is a flat of its own and belongs to one rank, the lightest so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_LARGE_BYTES = 256 * 1024
"""A parameter of at least so many bytes is a flat of its own, which needs no copies; smaller ones share."""
_PACKED_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Piece:
    """What a rank holds of a parameter."""

    index: int
    """Of the parameter."""
    begin: int
    end: int
    """Elements of the flattened parameter."""
    offset: int
    """Where it begins in the rank's part of the flat."""

    def within(self, part: torch.Tensor) -> torch.Tensor:
        """Its elements, (end - begin,), as a view of `part`, a rank's part of the flat."""
        return part[self.offset : self.offset + self.end - self.begin]


@dataclass(frozen=True)
class Flat:
    """Parameters `indices`, one after another, and how many elements of them each rank holds."""

    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    """Elements of each parameter."""
    counts: tuple[int, ...]
    """Elements of each rank's part, in the order of the flat."""
    dtype: torch.dtype
    device: torch.device
    trains: bool

    @property
    def numel(self) -> int:
        """Elements in all."""
        return sum(self.lengths)

    def bounds(self, rank: int) -> tuple[int, int]:
        """Where the part of `rank` begins and ends."""
        begin = sum(self.counts[:rank])
        return begin, begin + self.counts[rank]

    def pieces(self, rank: int) -> list[Piece]:
        """The parameters' parts that `rank` holds, without empty ones."""
        begin, end = self.bounds(rank)
        found, start = [], 0
        for index, length in zip(self.indices, self.lengths, strict=True):
            first, last = max(begin, start), min(end, start + length)
            if first < last:
                found.append(Piece(index, first - start, last - start, first - begin))
            start += length
        return found


def cut_evenly(numel: int, ranks: int) -> tuple[int, ...]:
    """The lengths of `ranks` parts of `numel` elements."""
    base, extra = divmod(numel, ranks)
    return tuple(base + (rank < extra) for rank in range(ranks))


def plan_flats(parameters: Sequence[torch.Tensor], indices: Sequence[int], ranks: int) -> list[Flat]:
    """Flats of the parameters `indices`, in their order, for optimizers that work element by element."""
    groups: list[list[int]] = []
    opened: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
    filled: dict[int, int] = {}
    for index in indices:
        parameter = parameters[index]
        if parameter.nbytes >= _LARGE_BYTES:
            groups.append([index])
            continue
        kind = (parameter.dtype, parameter.device, parameter.requires_grad)
        group = opened.get(kind)
        if group is None or filled[id(group)] + parameter.nbytes > _PACKED_BYTES:
            group = opened[kind] = []
            filled[id(group)] = 0
            groups.append(group)
        group.append(index)
        filled[id(group)] += parameter.nbytes
    return [_flat(parameters, group, cut_evenly(sum(parameters[i].numel() for i in group), ranks)) for group in groups]


def plan_whole(parameters: Sequence[torch.Tensor], indices: Sequence[int], ranks: int) -> list[Flat]:
    """A flat for each of the parameters `indices`, that belongs to one rank: large ones are given away first."""
    loads = [0] * ranks
    owners: dict[int, int] = {}
    for index in sorted(indices, key=lambda i: (-parameters[i].nbytes, i)):
        owner = owners[index] = loads.index(min(loads))
        loads[owner] += parameters[index].nbytes
    return [
        _flat(parameters, [i], tuple(parameters[i].numel() if rank == owners[i] else 0 for rank in range(ranks)))
        for i in indices
    ]


def _flat(parameters: Sequence[torch.Tensor], group: Sequence[int], counts: tuple[int, ...]) -> Flat:
    first = parameters[group[0]]
    lengths = tuple(parameters[index].numel() for index in group)
    return Flat(tuple(group), lengths, counts, first.dtype, first.device, first.requires_grad)
