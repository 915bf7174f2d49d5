"""What hvdkit's cost model says that the all-reduce of a model's gradients takes; None where there is no model."""

from typing import Any

from torch import nn

from hvdkit.optim.buckets import DEFAULT_BUCKET_BYTES
from hvdkit.runtime import require_world


def predict_communication_s(model: nn.Module) -> float | None:
    """Seconds to reduce the gradients of `model` in buckets by what "auto" picks, nothing hidden behind backward.

    Collective at its first call, which may probe. None under Gloo, on one rank, and in an hvdkit that has only
    Horovod's engine.
    """
    world = require_world()
    choice = _choice(world) if world.size > 1 and world.comm is not None else None
    if choice is None:
        return None
    nbytes = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    whole, rest = divmod(nbytes, DEFAULT_BUCKET_BYTES)
    buckets = [DEFAULT_BUCKET_BYTES] * whole + ([rest] if rest else [])
    return sum(float(choice.explain("all_reduce", bucket)[0][1]) for bucket in buckets)


def _choice(world: Any) -> Any:
    try:
        from hvdkit.collectives import direct_collectives
    except ImportError:
        return None
    choice = direct_collectives(world).algorithms.choose
    return choice if hasattr(choice, "explain") else None
