"""Memory that the ranks of a node share: two slots per rank, used in turns.

A slot of a turn may be written when the turn before has passed a barrier, for then every rank has read what the slot
held two turns ago. Room is agreed on before anything is allocated, since MPI_Win_allocate_shared fails on one rank
alone, or a process dies of SIGBUS, where /dev/shm (64 MB in a Docker container) is too small.

Moving cache lines between cores is what shared memory costs. A core that rewrites a line which another has read since
waits 4 to 25 times as long as one that overwrites a line which another wrote last (1 to 6 and 13 to 33 GB/s on the
machines measured). So the writer of a line changes at every turn: what one rank wrote the one that reads it overwrites,
with a result of its own or, in `take`, with the same.
"""

import os
from typing import Any

import torch

from hvdkit.errors import HvdkitError

CACHE_LINE = 64
SHARED_FOLDER = "/dev/shm"
_SPARE_BYTES = 4 * 2**20


class NoRoomError(HvdkitError):
    """The node's shared memory is too small; raised on all its ranks alike."""


class Window:
    """Shared slots of `slot_bytes` for each rank of the communicator `node`. Collective over the node.

    Raises NoRoomError on all ranks of the node if they do not fit.
    """

    def __init__(self, mpi: Any, node: Any, slot_bytes: int) -> None:
        self.node, self.slot_bytes = node, slot_bytes
        self.size: int = node.Get_size()
        total = 2 * slot_bytes * self.size
        room = node.allreduce(free_shared_bytes(), op=mpi.MIN)
        if total + _SPARE_BYTES > room:
            raise NoRoomError(
                f"{total / 2**20:.0f} MB of shared memory are needed and {room / 2**20:.0f} MB are free in "
                f"{SHARED_FOLDER} (docker run --shm-size=1g gives more)"
            )
        self._window = mpi.Win.Allocate_shared(2 * slot_bytes, 1, comm=node)
        whole = [
            torch.frombuffer(self._window.Shared_query(rank)[0], dtype=torch.uint8) for rank in range(self.size)
        ]  # fmt: skip
        whole[node.Get_rank()].zero_()  # takes the pages now, and near this rank
        node.Barrier()
        self._bytes = [[region[turn * slot_bytes :][:slot_bytes] for region in whole] for turn in (0, 1)]
        self._views: dict[torch.dtype, list[list[torch.Tensor]]] = {}
        self.turn = 0
        """0 or 1: which of its slots are in use."""

    def next_slots(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The slots of all ranks for the next turn, each (slot_bytes / itemsize,) of `dtype`."""
        self.turn ^= 1
        if dtype not in self._views:
            self._views[dtype] = [[region.view(dtype) for region in turn] for turn in self._bytes]
        return self._views[dtype][self.turn]

    def barrier(self) -> None:
        """Wait for all ranks of the node."""
        self.node.Barrier()

    def close(self) -> None:
        """Free the memory. Collective over the node."""
        self._bytes, self._views = [], {}
        self._window.Free()


def take(part: torch.Tensor, out: torch.Tensor) -> None:
    """Copy `part` of another rank's slot into `out`, and back, so that this rank is the last to have written it.

    Several ranks may do it at once: each writes what is there.
    """
    out.copy_(part)
    part.copy_(out)


def free_shared_bytes() -> int:
    """Free room in the node's shared memory."""
    try:
        status = os.statvfs(SHARED_FOLDER)
    except OSError:
        return 2**63 - 1  # no such folder: MPI uses something else, and says itself if that is too small
    return status.f_bavail * status.f_frsize
