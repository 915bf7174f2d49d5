"""Gradients flow through operations, whatever follows them, in bfloat16 too."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.runtime import World, gather_objects


def level_handles(world: World) -> None:
    """Bring Horovod's handle numbers level: its backward names reductions by them, and tests may call unevenly."""
    handle = hvd.allreduce_async(torch.ones(1), name="level")
    hvd.synchronize(handle)
    unknown = copy.copy(hvd.global_process_set)
    unknown.process_set_id = 10**6
    for _ in range(max(gather_objects(world, handle)) - handle):
        with pytest.raises(ValueError, match="does not exist"):  # uses up a number and tells nobody
            hvd.allreduce_async(torch.ones(1), op=hvd.Sum, process_set=unknown)


# The operation, and how many times its input's rows are counted in the gradient (Horovod averages that of gathers).
CASES: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[World], float]]] = {
    "allreduce sum": (lambda t: hvd.allreduce(t, op=hvd.Sum), lambda w: w.size),
    "allreduce average": (lambda t: hvd.allreduce(t, op=hvd.Average), lambda w: 1),
    "grouped_allreduce": (lambda t: hvd.grouped_allreduce([t, t], op=hvd.Sum)[0], lambda w: w.size),
    "allgather": (lambda t: hvd.allgather(t), lambda w: 1),
    "grouped_allgather": (lambda t: hvd.grouped_allgather([t])[0], lambda w: 1),
    "broadcast": (lambda t: hvd.broadcast(t, root_rank=0), lambda w: float(w.rank == 0)),
    "alltoall": (lambda t: hvd.alltoall(t), lambda w: 1),
    "reducescatter": (lambda t: hvd.reducescatter(t, op=hvd.Sum), lambda w: w.size),
    "grouped_reducescatter": (lambda t: hvd.grouped_reducescatter([t], op=hvd.Sum)[0], lambda w: w.size),
}


@pytest.mark.filterwarnings("ignore:Parameter `average` has been replaced")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_gradients_flow_through(world: World, case: str, dtype: torch.dtype) -> None:
    level_handles(world)
    call, factor = CASES[case]
    tensor = torch.ones(world.size, dtype=dtype, requires_grad=True)
    call(tensor).float().sum().backward()
    assert tensor.grad is not None and tensor.grad.dtype == dtype
    assert torch.equal(tensor.grad, torch.full_like(tensor, factor(world)))
