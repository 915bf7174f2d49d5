"""The MPI library's own algorithms, in blocks that stay in cache.

Libraries tune themselves for messages of any length on any network, and are quickest for short ones. For long ones
between ranks of one machine most of the time goes into moving a message through memory several times: Open MPI's
all-reduce of 128 MB took 75 ms whole and 22 ms in blocks of 1 MB.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.reduction import Reduction, rounds, starts_of, wide_dtype
from hvdkit.collectives.steps import Steps
from hvdkit.collectives.wide import as_bytes, in_wide_blocks, scaled
from hvdkit.runtime.mpi import load_mpi

_BLOCK_BYTES = 1 * 2**20
_OPERATIONS = {"sum": "SUM", "min": "MIN", "max": "MAX", "product": "PROD"}


class MpiLibrary:
    """See the module; over all ranks of `group`."""

    name = "mpi"

    def __init__(self, group: Group) -> None:
        mpi = group.mpi
        self._mpi, self._comm = mpi, group.comm
        self._size, self._index = group.size, group.index

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`."""
        op = mpi_op(self._mpi, reduction)
        for block in in_wide_blocks(data, _BLOCK_BYTES, reduction.factor(self._index)):
            self._comm.Allreduce(self._mpi.IN_PLACE, block.numpy(), op)
            reduction.finish(block)

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """See `Algorithm`."""
        if data.nbytes <= _BLOCK_BYTES and reduction.factors is None and wide_dtype(data.dtype) == data.dtype:
            self._comm.Reduce_scatter(data.numpy(), out.numpy(), counts, mpi_op(self._mpi, reduction))
            reduction.finish(out)
            return
        starts = starts_of(counts)
        for first, block in rounds(counts, data.element_size(), _BLOCK_BYTES // self._size):
            packed = [data[start + first :][:n] for start, n in zip(starts, block, strict=True)]
            work = scaled(torch.cat(packed), reduction.factor(self._index))
            result = torch.empty(block[self._index], dtype=work.dtype)
            self._comm.Reduce_scatter(work.numpy(), result.numpy(), block, mpi_op(self._mpi, reduction))
            reduction.finish(result)
            out[first : first + block[self._index]].copy_(result)

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`."""
        itemsize, target = part.element_size(), as_bytes(out)
        if counts[0] * itemsize <= _BLOCK_BYTES and all(count == counts[0] for count in counts):
            is_there = part.data_ptr() == out.data_ptr() + self._index * counts[0] * itemsize
            self._comm.Allgather(self._mpi.IN_PLACE if is_there else as_bytes(part), target)
            return
        starts = starts_of(counts)
        for first, block in rounds(counts, itemsize, _BLOCK_BYTES):
            mine = part[first : first + block[self._index]]
            lengths = [n * itemsize for n in block]
            places = [(start + min(first, count)) * itemsize for start, count in zip(starts, counts, strict=True)]
            # Where the part lies in its place MPI must not be given both.
            is_there = mine.data_ptr() == out.data_ptr() + places[self._index]
            self._comm.Allgatherv(
                self._mpi.IN_PLACE if is_there else as_bytes(mine), [target, lengths, places, self._mpi.BYTE]
            )

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`."""
        if data.nbytes <= _BLOCK_BYTES:
            self._comm.Bcast(as_bytes(data), root)
            return
        for block in data.split(_BLOCK_BYTES // data.element_size()):
            self._comm.Bcast(as_bytes(block), root)

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """See `Algorithm`."""
        for block in data.split(_BLOCK_BYTES // data.element_size()):
            work = scaled(block, reduction.factor(self._index))
            is_root = self._index == root
            self._comm.Reduce(
                self._mpi.IN_PLACE if is_root else work.numpy(),
                work.numpy() if is_root else None,
                mpi_op(self._mpi, reduction),
                root,
            )
            if is_root:
                reduction.finish(work)
                block.copy_(work)


def mpi_all_reduce(comm: Any, data: torch.Tensor, reduction: Reduction, tag: int) -> Steps:
    """All-reduce `data`, (n,) contiguous, in place over `comm`, by the library's non-blocking all-reduce."""
    mpi = load_mpi()
    yield [comm.Iallreduce(mpi.IN_PLACE, data.numpy(), mpi_op(mpi, reduction))]


def mpi_op(mpi: Any, reduction: Reduction) -> Any:
    """The library's operation."""
    return getattr(mpi, _OPERATIONS[reduction.op])
