"""Which optimizers may be given pieces of parameters."""

import torch

from hvdkit.errors import HvdkitError

_optim = torch.optim
ELEMENTWISE = frozenset(
    (
        _optim.SGD, _optim.Adam, _optim.AdamW, _optim.RMSprop, _optim.Adagrad, _optim.Adadelta, _optim.Adamax,
        _optim.NAdam, _optim.RAdam, _optim.ASGD, _optim.Rprop,
    )
)  # fmt: skip
"""Their step changes every element by its own gradient and state alone."""


def is_elementwise(optimizer: torch.optim.Optimizer, stage: int, told: bool | None) -> bool:
    """Whether `optimizer` may step pieces of parameters; `told` is what the user says of it.

    Others are known to step each parameter by itself and can be given whole ones. Raises HvdkitError for one that
    cannot, or not at this `stage`.
    """
    kind = type(optimizer)
    name = kind.__name__
    if isinstance(optimizer, _optim.LBFGS):
        raise HvdkitError(
            f"{name} searches along one direction of all parameters together, which no shard has: no stage of "
            "sharding works; use hvd.DistributedOptimizer"
        )
    if isinstance(optimizer, _optim.SparseAdam):
        raise HvdkitError(f"{name} takes sparse gradients, which cannot be scattered; use hvd.DistributedOptimizer")
    if told if told is not None else kind in ELEMENTWISE:
        return True
    if stage == 3:
        raise HvdkitError(
            f"{name} may need whole matrices, and at stage 3 every rank holds a slice of each: use stage 1 or 2, where "
            "each parameter belongs to one rank, or say elementwise=True if its step treats every element by itself"
        )
    return False
