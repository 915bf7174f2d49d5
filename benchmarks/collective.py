"""What each collective is, for the benchmarks: its buffers, its right answer, and the bytes that it must move.

`nbytes` is the size of the largest buffer of a rank, as nccl-tests counts it, and so is the bus bandwidth: the rate at
which a link would carry the traffic of the best algorithm, the same number for any number of ranks p.

| collective | a rank gives, gets | bus bandwidth | bytes that must move |
|---|---|---|---|
| allreduce (in place) | n, n | 2(p-1)/p x n/t | 2pn: every rank's n are read and written |
| broadcast (in place) | n on rank 0, n elsewhere | n/t | pn: the root's n are read, p-1 ranks write theirs |
| allgather | n/p, n | (p-1)/p x n/t | (p+1)n: the n/p of p ranks are read, p ranks write n |
| reducescatter | n, n/p | (p-1)/p x n/t | (p+1)n: the n of p ranks are read, p ranks write n/p |

The last column counts each byte of input and output once, whatever an algorithm does in between, and divided by the
triad bandwidth of p ranks it is the bound. Messages that stay in a cache between calls can beat it, which
speaks of memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

NAMES = ("allreduce", "broadcast", "allgather", "reducescatter")
ITEM_BYTES = 4
TRIAD_ARRAY_BYTES = 64 * 1024**2
ROOT = 0

Zeros = Callable[[int], torch.Tensor]
"""Makes a one-dimensional tensor of so many numbers. Collective."""


@dataclass(frozen=True)
class Buffers:
    """A rank's float32 buffers; one and the same where the collective works in place."""

    collective: str
    send: torch.Tensor
    receive: torch.Tensor

    @classmethod
    def allocate(cls, collective: str, nbytes: int, ranks: int, zeros: Zeros = torch.zeros) -> "Buffers":
        """Buffers for a message of `nbytes`, a multiple of 4 times `ranks`."""
        whole = zeros(nbytes // ITEM_BYTES)
        part = whole if collective in ("allreduce", "broadcast") else zeros(nbytes // ITEM_BYTES // ranks)
        if collective == "allgather":
            return cls(collective, part, whole)
        return cls(collective, whole, part)


def rounded(nbytes: int, ranks: int) -> int:
    """The largest message of at most `nbytes` that every rank can take an equal part of (at least one number)."""
    unit = ITEM_BYTES * ranks
    return max(1, nbytes // unit) * unit


def given(count: int, rank: int) -> torch.Tensor:
    """What rank `rank` puts in when results are checked: `(count,)` small whole numbers, whose sums are exact."""
    return torch.arange(count).remainder_(97).float().add_(rank)


def expected(buffers: Buffers, rank: int, ranks: int) -> torch.Tensor:
    """What rank `rank` must get, by a closed form, when every rank put in what `given` says."""
    count = buffers.send.numel()
    if buffers.collective == "broadcast":
        return given(count, ROOT)
    if buffers.collective == "allgather":
        return torch.cat([given(count, other) for other in range(ranks)])
    total = given(count, 0) * ranks + ranks * (ranks - 1) / 2
    return total if buffers.collective == "allreduce" else total.chunk(ranks)[rank]


def bus_bandwidth(collective: str, nbytes: int, ranks: int, seconds: float) -> float:
    """Bytes per second, as nccl-tests defines it (doc/PERFORMANCE.md there)."""
    factor = {"allreduce": 2 * (ranks - 1) / ranks, "broadcast": 1.0}.get(collective, (ranks - 1) / ranks)
    return factor * nbytes / seconds


def bytes_to_move(collective: str, nbytes: int, ranks: int) -> int:
    """Bytes that all ranks together must read and write (see the table above)."""
    return {"allreduce": 2 * ranks, "broadcast": ranks}.get(collective, ranks + 1) * nbytes


def triad_bandwidth(seconds: float, ranks: int) -> float:
    """Bytes per second of `ranks` ranks that did one triad each (`benchmarks/peers/triad.py`) in this time."""
    return 3 * TRIAD_ARRAY_BYTES * ranks / seconds
