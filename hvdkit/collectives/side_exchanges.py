"""The small numbers that some calls exchange beside their data: weights, lengths, bits.

Here, since ranks that have called `join()` exchange them too (`joined`). All are collective.
"""

import numpy as np

from hvdkit.collectives.group import Group
from hvdkit.collectives.meeting import Call
from hvdkit.collectives.reduction import Reduction, reduction_for


def weighted(group: Group, call: Call, weight: float | None) -> Reduction:
    """The reduction of `call` with the weights of all ranks, of which this one's is `weight`."""
    gathered = np.zeros(group.size, dtype=np.float64)
    group.comm.Allgather(np.array([weight], dtype=np.float64), gathered)
    return reduction_for(call.op, group.size, call.dtype, gathered.tolist())


def greatest_lengths(group: Group, mine: list[int]) -> list[int]:
    """The lengths of many tensors, which a rank that brings none (zeros) has to learn."""
    lengths = np.array(mine, dtype=np.int64)
    group.comm.Allreduce(group.mpi.IN_PLACE, lengths, group.mpi.MAX)
    found: list[int] = lengths.tolist()
    return found


def common_bits(group: Group, mine: int) -> int:
    """The bits that all ranks set."""
    bits = np.array([mine], dtype=np.int64)
    group.comm.Allreduce(group.mpi.IN_PLACE, bits, group.mpi.BAND)
    return int(bits[0])
