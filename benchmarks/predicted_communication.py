"""What hvdkit's cost model says that the all-reduce of a model's gradients takes; None where there is no model."""

from torch import nn

from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.collectives.choice import Choice
from hvdkit.optim.buckets import DEFAULT_BUCKET_BYTES
from hvdkit.runtime import require_world


def predict_communication_s(model: nn.Module) -> float | None:
    """Seconds to reduce the gradients of `model` in buckets by what "auto" picks, nothing hidden behind backward.

    Collective at its first call, which may probe. None on one rank, and where only Horovod's engine can be used.
    """
    world = require_world()
    if world.size == 1 or why_no_direct(world) is not None:
        return None
    choice = direct_collectives(world).algorithms.choose
    assert isinstance(choice, Choice)
    nbytes = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    whole, rest = divmod(nbytes, DEFAULT_BUCKET_BYTES)
    buckets = [DEFAULT_BUCKET_BYTES] * whole + ([rest] if rest else [])
    return sum(float(choice.explain("all_reduce", bucket)[0][1]) for bucket in buckets)
