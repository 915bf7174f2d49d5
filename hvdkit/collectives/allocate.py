"""`empty_shared()`: memory from which a node's ranks reduce without copies."""

import torch

from hvdkit.collectives.checks import check_shared
from hvdkit.collectives.connect import direct_collectives, why_no_direct
from hvdkit.runtime import require_world


def empty_shared(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of zeros in memory that the ranks of a node share, for buffers that are reduced often. Collective.

    Each rank gets a tensor of its own, of the same `shape` (rows, ...) and `dtype`, to use like any other. When all
    ranks pass the same part of it to a call with `strategy="shared_memory"` (or "auto", which takes that for long
    tensors), values go from rank to rank without copies: an all-reduce then takes half to three quarters of the time.

    It is an ordinary tensor where hvdkit's own algorithms cannot work (Gloo launches), the job has several nodes, or
    the node's shared memory has no room, of which rank 0 warns. The memory is freed with the last tensor that uses it.
    Every rank must call it alike, in the same order; CollectiveMismatchError on all ranks if not, ValueError for a
    dtype that cannot be reduced.
    """
    world = require_world()
    if why_no_direct(world) is not None:
        check_shared(shape, dtype)
        return torch.zeros(shape, dtype=dtype)
    return direct_collectives(world).empty_shared(shape, dtype)
