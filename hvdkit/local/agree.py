"""Whether all ranks mean the same local updates, asked once before anything else."""

from typing import Any

import torch

from hvdkit.errors import ConfigError, DivergenceError
from hvdkit.runtime import World, gather_objects


def trained_parameters(
    model: torch.nn.Module, inner: torch.optim.Optimizer
) -> list[tuple[str, torch.Tensor]]:  # fmt: skip
    """Names and values of what `inner` trains, in the model's order, tied ones once.

    Raises ConfigError if it does not train all that require gradients, or something else.
    """
    given = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
    named: list[tuple[str, torch.Tensor]] = [
        (name, parameter) for name, parameter in model.named_parameters() if id(parameter) in given
    ]
    if len(named) != len(given):
        raise ConfigError("the inner optimizer has parameters that are not the model's")
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in given]
    if missing:
        raise ConfigError(f"{', '.join(missing)} require gradients and are not in the inner optimizer")
    if not named:
        raise ConfigError("the inner optimizer trains nothing")
    if len({parameter.device for _, parameter in named}) > 1:
        raise ConfigError("the trained parameters must all be on one device")
    return named


def check_agreement(world: World, named: list[tuple[str, torch.Tensor]], options: dict[str, Any]) -> None:
    """Raise DivergenceError on all ranks, with the first difference, if they differ. Collective."""
    mine = {name: str(value) for name, value in options.items()}
    mine |= {f"parameter {name}": f"{tuple(p.shape)} {p.dtype}" for name, p in named}
    everyone = gather_objects(world, mine)
    for rank, theirs in enumerate(everyone):
        for name in {**everyone[0], **theirs}:
            first, other = everyone[0].get(name, "nothing"), theirs.get(name, "nothing")
            if first != other:
                raise DivergenceError(
                    f"local updates: ranks disagree on {name}: rank 0 has {first}, rank {rank} has {other}; every rank "
                    "must build the same model, and synchronise it alike"
                )
