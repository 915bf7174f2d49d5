"""Small notes between ranks that nobody has to wait for: what each of them is doing.

Sends are nonblocking, receives happen when something has come. A communicator of its own keeps them apart from
collectives. It is never freed: a note to a rank that was computing may still be on its way, and would be taken for
one of the next communicator that gets the same number.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

_unfinished: list[tuple[Any, bytes]] = []
"""Sends of communicators that are out of use; MPI may still read the buffers."""


class Post(Protocol):
    """Carries small JSON values between the `size` ranks; the methods of `Notes` say more."""

    rank: int
    size: int

    @property
    def is_reliable(self) -> bool:
        """Whether what is sent arrives, unless the rank or the way to it is gone."""

    def send(self, rank: int, value: Any) -> None: ...
    def receive(self) -> Iterator[tuple[int, Any]]: ...
    def close(self) -> None: ...


class Notes:
    """Sends and receives JSON values over `comm` (mpi4py), from one thread. `mpi` is mpi4py's module.

    A value should stay below 4 KB, which MPI libraries send without waiting for the receiver.
    """

    is_reliable = True

    def __init__(self, mpi: Any, comm: Any) -> None:
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._mpi, self._comm = mpi, comm
        self._sent: list[tuple[Any, bytes]] = []

    def send(self, rank: int, value: Any) -> None:
        """Send `value` to `rank`; returns at once."""
        note = json.dumps(value).encode()
        self._sent.append((self._comm.Isend([note, self._mpi.BYTE], dest=rank), note))

    def receive(self) -> Iterator[tuple[int, Any]]:
        """Every note that has come since, with the rank that sent it."""
        status = self._mpi.Status()
        while self._comm.Iprobe(status=status):
            note = bytearray(status.Get_count(self._mpi.BYTE))
            self._comm.Recv([note, self._mpi.BYTE], source=status.Get_source())
            yield status.Get_source(), json.loads(note)
        self._sent = [pair for pair in self._sent if not pair[0].Test()]

    def close(self) -> None:
        """Take what has come, so that little is left for MPI_Finalize; nothing waits. Not collective."""
        for _ in self.receive():
            pass
        _unfinished.extend(self._sent)
