"""Ring: every rank sends to the next and receives from the one before, p-1 steps for each half of an all-reduce.

Each link carries 2(p-1)/p of the bytes, which no algorithm beats; but a message passes 2(p-1) times, so short ones are
slow. Source: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.reduction import Reduction, split_evenly, starts_of
from hvdkit.collectives.steps import Steps, drive
from hvdkit.collectives.wide import as_bytes, in_wide_blocks, scaled

_BLOCK_BYTES = 4 * 2**20


class Ring:
    """See the module; over all ranks of `group`."""

    name = "ring"

    def __init__(self, group: Group) -> None:
        self._mpi, self._comm = group.mpi, group.comm
        self._size, self._index = group.size, group.index

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`. Sends 2(p-1)/p of the bytes per rank (twice that of 16-bit values) in 2(p-1) steps."""
        for block in in_wide_blocks(data, _BLOCK_BYTES, reduction.factor(self._index)):
            drive(self._mpi, ring_all_reduce(self._comm, block, reduction, tag=0))
            reduction.finish(block)

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """See `Algorithm`. Sends (p-1)/p of the bytes per rank in p-1 steps."""
        work = scaled(data, reduction.factor(self._index))
        parts = list(work.split(list(counts)))
        drive(self._mpi, _ring_reduce(self._comm, parts, reduction, tag=0, shift=-1))
        reduction.finish(parts[self._index])
        out.copy_(parts[self._index])

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`. Sends all parts but one, in p-1 steps."""
        start = starts_of(counts)[self._index]
        out[start : start + counts[self._index]].copy_(part)
        block = _BLOCK_BYTES // out.element_size()
        for first in range(0, max(counts), block):
            pieces = [piece[first : first + block] for piece in out.split(list(counts))]
            drive(self._mpi, _ring_gather(self._comm, pieces, tag=0, shift=0))


def ring_all_reduce(comm: Any, data: torch.Tensor, reduction: Reduction, tag: int) -> Steps:
    """All-reduce `data`, (n,) contiguous, in place over `comm`."""
    parts = [data[start:stop] for start, stop in split_evenly(data.numel(), comm.Get_size())]
    yield from _ring_reduce(comm, parts, reduction, tag, shift=0)
    yield from _ring_gather(comm, parts, tag, shift=1)


def _ring_reduce(comm: Any, parts: list[torch.Tensor], reduction: Reduction, tag: int, shift: int) -> Steps:
    """Afterwards rank r holds the whole reduction of part r + 1 + shift."""
    size, index = comm.Get_size(), comm.Get_rank()
    scratch = torch.empty(max(part.numel() for part in parts), dtype=parts[0].dtype)
    for step in range(size - 1):
        outgoing, incoming = parts[(index + shift - step) % size], parts[(index + shift - step - 1) % size]
        received = scratch[: incoming.numel()]
        yield _exchange(comm, outgoing, received, tag)
        reduction.combine(received, incoming, out=incoming)


def _ring_gather(comm: Any, parts: list[torch.Tensor], tag: int, shift: int) -> Steps:
    """Rank r begins with part r + shift; afterwards all ranks have all."""
    size, index = comm.Get_size(), comm.Get_rank()
    for step in range(size - 1):
        yield _exchange(comm, parts[(index + shift - step) % size], parts[(index + shift - step - 1) % size], tag)


def _exchange(comm: Any, outgoing: torch.Tensor, incoming: torch.Tensor, tag: int) -> list[Any]:
    size, index = comm.Get_size(), comm.Get_rank()
    return [
        comm.Irecv(as_bytes(incoming), (index - 1) % size, tag),
        comm.Isend(as_bytes(outgoing), (index + 1) % size, tag),
    ]
