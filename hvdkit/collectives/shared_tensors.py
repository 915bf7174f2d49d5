"""Tensors that lie in memory which the ranks of a node share, so that a collective needs no copies between ranks.

Each rank has a tensor of its own there, of the same shape, and sees the others'. A reduction of such tensors reads and
writes every value once, in place; through the slots of `window` it is copied twice more.

The memory is a file without a name, mapped by all: it goes when the last tensor in it does, and with the processes,
however they end.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.window import SHARED_FOLDER, NoRoomError, free_shared_bytes


class _Region(NamedTuple):
    """The tensors of one call of `empty`."""

    memory: Callable[[], mmap.mmap | None]
    begin: int
    """The address of this rank's tensor."""
    nbytes: int
    stride: int
    """Bytes from one rank's tensor to the next one's."""


class SharedTensors:
    """The shared tensors of the ranks of `group`, which lie on one node."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._regions: list[_Region] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of zeros, of the same `shape` on all ranks. Collective.

        Raises NoRoomError on all ranks if they do not fit into the node's shared memory.
        """
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        stride = _whole_pages(tensor.nbytes)
        memory = self._map(stride)
        mine = _view(memory, self._group.node_index * stride, tensor.nbytes)
        self._regions.append(_Region(weakref.ref(memory), mine.data_ptr(), tensor.nbytes, stride))
        return mine.view(dtype).view(tensor.shape)

    def one_for_all(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """One tensor of zeros for all ranks together. Collective; raises NoRoomError on all ranks."""
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        memory = self._map(_whole_pages(-(-tensor.nbytes // self._group.node_size)))
        return _view(memory, 0, tensor.nbytes).view(dtype).view(tensor.shape)

    def _map(self, stride: int) -> mmap.mmap:
        """Memory of `stride` bytes for each rank. Collective; raises NoRoomError on all ranks."""
        group, is_first = self._group, self._group.node_index == 0
        total = stride * group.node_size
        file, path, problem = -1, "", ""
        if total > group.node.allreduce(free_shared_bytes(), op=group.mpi.MIN):
            problem = "no space left"  # where the folder may be larger than memory, trying could kill the process
        elif is_first:
            try:
                file, path = tempfile.mkstemp(prefix="hvdkit-", dir=SHARED_FOLDER)
                os.truncate(file, total)
            except OSError as error:
                problem = str(error)
        path = group.node.bcast(path)
        try:
            if path:
                file = file if is_first else os.open(path, os.O_RDWR)
                # Takes the pages, near this rank; without them the process would die of SIGBUS at the first write.
                os.posix_fallocate(file, group.node_index * stride, stride)
        except OSError as error:
            problem = str(error)
        problems = [text for text in group.comm.allgather(problem) if text]
        try:
            if is_first and path:
                Path(path).unlink()
            if problems:
                raise NoRoomError(
                    f"{total / 2**20:.0f} MB for shared tensors in {SHARED_FOLDER}: {problems[0]} "
                    "(docker run --shm-size=1g gives more)"
                )
            return mmap.mmap(file, total)
        finally:
            if file >= 0:
                os.close(file)

    def everyones(self, data: torch.Tensor) -> list[torch.Tensor] | None:
        """All ranks' `data`, in the order of the group, if each brings the same part of the same shared tensor.

        None on all ranks if not. Collective; when it returns, every rank has come to it.
        """
        if not self._regions:  # alike on all ranks
            return None
        number, offset = self._find(data.data_ptr(), data.nbytes)
        place = np.array([number, -number, offset, -offset], dtype=np.int64)
        self._group.comm.Allreduce(self._group.mpi.IN_PLACE, place, self._group.mpi.MAX)
        high, negative_low, high_offset, negative_low_offset = place.tolist()
        if negative_low >= 1 or (high, high_offset) != (-negative_low, -negative_low_offset):
            return None
        region = self._regions[number]
        memory = region.memory()
        assert memory is not None, "data lies in it"
        return [
            data if index == self._group.node_index else
            _view(memory, index * region.stride + offset, data.nbytes).view(data.dtype)
            for index in range(self._group.node_size)
        ]  # fmt: skip

    def _find(self, address: int, nbytes: int) -> tuple[int, int]:
        """The number of the region in which these bytes lie, and at which of its bytes they begin; (-1, 0) if none."""
        for number, region in enumerate(self._regions):
            offset = address - region.begin
            if offset >= 0 and offset + nbytes <= region.nbytes and region.memory() is not None:
                return number, offset
        return -1, 0


def _whole_pages(nbytes: int) -> int:
    """The least whole number of pages, at least one, that hold `nbytes`."""
    return -(-max(1, nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE


def _view(memory: Any, offset: int, nbytes: int) -> torch.Tensor:
    """These bytes of `memory`, which lives as long as the tensor."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8, offset=offset, count=nbytes)
