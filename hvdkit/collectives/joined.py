"""What a rank that has called `join()` does while the others go on, and what they cannot go on with."""

import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.group import Group
from hvdkit.collectives.meeting import Call, Meeting
from hvdkit.collectives.ready import EVERYTHING
from hvdkit.collectives.reduction import Reduction, reduction_for
from hvdkit.collectives.rows import gather_rows
from hvdkit.collectives.side_exchanges import common_bits, greatest_lengths, weighted

SERVED = ("all_reduce", "all_reduce_many", "all_gather", "gather_objects", "ready")
"""What ranks that have called `join()` take part in."""


def cannot_go_on(call: Call) -> ValueError:
    """What all ranks raise, the same."""
    return ValueError(f"{call.kind} cannot go on after a rank has called join()")


def serve(group: Group, algorithms: Algorithms, meeting: Meeting) -> bool:
    """Take part in one collective of the others without anything to bring; False if nobody is in one. Collective.

    It brings zeros to reductions, as in Horovod, and no rows to all-gathers.
    """
    call = meeting.attend()
    if call is None:
        return False
    if call.kind == "gather_objects":
        group.comm.allgather(None)
    elif call.kind == "ready":
        if not common_bits(group, EVERYTHING):
            meeting.explain("nothing (it has called join())")
    elif call.kind == "all_reduce":
        zeros = torch.zeros(call.count, dtype=call.dtype)
        algorithms.method(call.kind, call.algorithm)(zeros, _reduction(group, call))
    elif call.kind == "all_reduce_many":
        reduction = _reduction(group, call)
        many = [torch.zeros(length, dtype=call.dtype) for length in greatest_lengths(group, [0] * call.count)]
        algorithms.all_reduce_many(call.algorithm, many, reduction)
    elif call.kind == "all_gather":
        gather_rows(group, algorithms, torch.zeros(0, call.count, dtype=call.dtype), call.algorithm)
    elif call.kind != "mistake":  # of the others, who raise their errors and go on
        raise cannot_go_on(call)
    return True


def _reduction(group: Group, call: Call) -> Reduction:
    return weighted(group, call, 0.0) if call.is_weighted else reduction_for(call.op, group.size, call.dtype)
