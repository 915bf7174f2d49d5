"""Binomial tree: log2(p) steps to one root, and log2(p) back.

Good for short messages between many ranks and for broadcasts: few steps, but every step carries the whole message.
Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
"""

from typing import Any

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.reduction import Reduction
from hvdkit.collectives.steps import Steps, drive
from hvdkit.collectives.wide import as_bytes, in_wide_blocks, scaled

_BLOCK_BYTES = 1 * 2**20


class Tree:
    """See the module; over all ranks of `group`."""

    name = "tree"

    def __init__(self, group: Group) -> None:
        self._mpi, self._comm, self._index = group.mpi, group.comm, group.index

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`. The root receives and sends log2(p) times the bytes, in 2 log2(p) steps."""
        for block in in_wide_blocks(data, _BLOCK_BYTES, reduction.factor(self._index)):
            drive(self._mpi, tree_all_reduce(self._comm, block, reduction, tag=0))
            reduction.finish(block)

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`."""
        for block in data.split(_BLOCK_BYTES // data.element_size()):
            drive(self._mpi, tree_broadcast(self._comm, block, root, tag=0))

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """See `Algorithm`."""
        for block in data.split(_BLOCK_BYTES // data.element_size()):
            work = scaled(block, reduction.factor(self._index))
            drive(self._mpi, tree_reduce(self._comm, work, root, reduction, tag=0))
            if self._index == root:
                reduction.finish(work)
                block.copy_(work)


def tree_all_reduce(comm: Any, data: torch.Tensor, reduction: Reduction, tag: int) -> Steps:
    """All-reduce `data`, (n,) contiguous, in place over `comm`."""
    yield from tree_reduce(comm, data, 0, reduction, tag)
    yield from tree_broadcast(comm, data, 0, tag)


def tree_reduce(comm: Any, data: torch.Tensor, root: int, reduction: Reduction, tag: int) -> Steps:
    """Reduce into the root's `data`; the others' holds partial results afterwards."""
    size = comm.Get_size()
    place = (comm.Get_rank() - root) % size
    received: torch.Tensor | None = None
    distance = 1
    while distance < size:
        if place & distance:
            yield [comm.Isend(as_bytes(data), (place - distance + root) % size, tag)]
            return
        if place + distance < size:
            received = torch.empty_like(data) if received is None else received
            yield [comm.Irecv(as_bytes(received), (place + distance + root) % size, tag)]
            reduction.combine(data, received, out=data)
        distance *= 2


def tree_broadcast(comm: Any, data: torch.Tensor, root: int, tag: int) -> Steps:
    """The root's `data` into everyone's."""
    size = comm.Get_size()
    place = (comm.Get_rank() - root) % size
    distance = 1
    while distance < size and not place & distance:
        distance *= 2
    if place:
        yield [comm.Irecv(as_bytes(data), (place - distance + root) % size, tag)]
    requests = []
    while distance > 1:
        distance //= 2
        if place + distance < size:
            requests.append(comm.Isend(as_bytes(data), (place + distance + root) % size, tag))
    if requests:
        yield requests
