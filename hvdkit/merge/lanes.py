"""Bytes between ranks, of lengths that all ranks know: mpi4py's all-to-all, all-gather and gather, or Horovod's."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from hvdkit.runtime import World

Bytes = npt.NDArray[np.uint8]


class Lanes(Protocol):
    """Collective over all ranks of a world."""

    def all_to_all(self, parts: Sequence[Bytes], lengths: Sequence[int]) -> list[Bytes]:
        """Send `parts[j]` to rank j; returns what each rank j sent here, `lengths[j]` bytes."""

    def all_gather(self, part: Bytes, lengths: Sequence[int]) -> list[Bytes]:
        """Every rank's `part`, of `lengths[j]` bytes, on every rank."""

    def gather(self, part: Bytes, lengths: Sequence[int]) -> list[Bytes]:
        """The same on rank 0; nothing on the others."""


def lanes_of(world: World) -> Lanes:
    """Over MPI, or over Horovod's engine under a Gloo launch."""
    return MpiLanes(world) if world.comm is not None else EngineLanes(world)


class MpiLanes:
    """mpi4py's collectives on buffers."""

    def __init__(self, world: World) -> None:
        self._comm = world.comm

    def all_to_all(self, parts: Sequence[Bytes], lengths: Sequence[int]) -> list[Bytes]:
        """See `Lanes`."""
        assert self._comm is not None
        received = np.empty(sum(lengths), dtype=np.uint8)
        sent = np.concatenate(parts)
        self._comm.Alltoallv([sent, [len(part) for part in parts]], [received, list(lengths)])
        return _cut(received, lengths)

    def all_gather(self, part: Bytes, lengths: Sequence[int]) -> list[Bytes]:
        """See `Lanes`."""
        assert self._comm is not None
        received = np.empty(sum(lengths), dtype=np.uint8)
        self._comm.Allgatherv(part, [received, list(lengths)])
        return _cut(received, lengths)

    def gather(self, part: Bytes, lengths: Sequence[int]) -> list[Bytes]:
        """See `Lanes`."""
        assert self._comm is not None
        if self._comm.rank:
            self._comm.Gatherv(part, None)
            return []
        received = np.empty(sum(lengths), dtype=np.uint8)
        self._comm.Gatherv(part, [received, list(lengths)])
        return _cut(received, lengths)


class EngineLanes:
    """Horovod's engine."""

    def __init__(self, world: World) -> None:
        self._is_root = world.is_root

    def all_to_all(self, parts: Sequence[Bytes], lengths: Sequence[int]) -> list[Bytes]:
        """See `Lanes`."""
        from hvdkit.runtime.dropin.operations import alltoall

        splits = torch.tensor([len(part) for part in parts], dtype=torch.int32)
        received, _ = alltoall(torch.from_numpy(np.concatenate(parts)), splits=splits, name="hvdkit.merge.alltoall")
        return _cut(received.numpy(), lengths)

    def all_gather(self, part: Bytes, lengths: Sequence[int]) -> list[Bytes]:
        """See `Lanes`."""
        from hvdkit.runtime.dropin.operations import allgather

        received: torch.Tensor = allgather(torch.from_numpy(part), name="hvdkit.merge.allgather")
        return _cut(received.numpy(), lengths)

    def gather(self, part: Bytes, lengths: Sequence[int]) -> list[Bytes]:
        """See `Lanes`."""
        parts = self.all_gather(part, lengths)
        return parts if self._is_root else []


def typed(data: Bytes, dtype: torch.dtype) -> torch.Tensor:
    """What `data` is the bytes of: (n,), sharing its memory."""
    return torch.from_numpy(data).view(dtype) if len(data) else torch.empty(0, dtype=dtype)


def _cut(data: Bytes, lengths: Sequence[int]) -> list[Bytes]:
    return np.split(data, np.cumsum(lengths)[:-1])
