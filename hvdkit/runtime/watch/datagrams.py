"""Notes between ranks where there is no MPI (a Gloo launch): small UDP datagrams.

A datagram that is lost is asked for again by the stall check. The sender's address does not count; each datagram
carries the job's secret, which rank 0 drew, so that what strangers send is dropped.
"""

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_LARGEST = 65000
_LAUNCHER = "HOROVOD_GLOO_RENDEZVOUS_ADDR"


class Datagrams:
    """`Notes` of the ranks that `gather` (every rank's object to every rank, in rank order) brings together.

    Making it is collective.
    """

    is_reliable = False

    def __init__(self, rank: int, size: int, gather: Callable[[Any], list[Any]]) -> None:
        self.rank, self.size = rank, size
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((_own_address(), 0))
        self._socket.setblocking(False)
        everyone = gather((self._socket.getsockname(), secrets.token_hex(8)))
        self._addresses = [address for address, _ in everyone]
        self._secret = everyone[0][1].encode()

    def send(self, rank: int, value: Any) -> None:
        """Send `value` to `rank`; returns at once."""
        with suppress(OSError):  # no way to that host, or no room: it counts as lost
            self._socket.sendto(self._secret + json.dumps([self.rank, value]).encode(), self._addresses[rank])

    def receive(self) -> Iterator[tuple[int, Any]]:
        """Every note that has come since, with the rank that sent it."""
        while True:
            try:
                datagram = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # a rank that was sent to has gone
            # What strangers send is not even read.
            if not secrets.compare_digest(datagram[: len(self._secret)], self._secret):
                continue
            try:
                rank, value = json.loads(datagram[len(self._secret) :])
            except (ValueError, TypeError, RecursionError):
                continue
            if rank in range(self.size):
                yield rank, value

    def close(self) -> None:
        """Not collective."""
        self._socket.close()


def _own_address() -> str:
    """This host's address on the way to where the launcher is; the ranks meet there, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ.get(_LAUNCHER, "127.0.0.1"), 9))  # sends nothing
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return address
