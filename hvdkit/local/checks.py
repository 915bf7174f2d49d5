"""What local updates can be asked for, and whether all ranks ask for the same: checked before anything else."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from hvdkit.errors import ConfigError, DivergenceError
from hvdkit.optim.compression import resolve
from hvdkit.optim.distributed import check_strategy
from hvdkit.optim.wrapped import Distributed
from hvdkit.runtime import World, gather_objects

Level = Literal["all", "nodes"] | Sequence[int]
Pace = Literal["equal", "proportional"]


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


class _Numbers:
    """How many `Rounds` a world's ranks have made; an attachment of the world."""

    def __init__(self) -> None:
        self.made = 0

    def close(self) -> None:
        """Nothing to do."""


def next_number(world: World) -> int:
    """What tells one `Rounds` object from others: all ranks make them in one order, so they number them alike."""
    numbers: _Numbers = world.attachments.setdefault("hvdkit.local", _Numbers())
    numbers.made += 1
    return numbers.made


def check_optimizers(inner: torch.optim.Optimizer, outer: torch.optim.Optimizer) -> None:
    """Raise ConfigError if they are one."""
    if outer is inner:
        raise ConfigError("the outer optimizer is the inner one; it must be another, made for the same parameters")


def check_is_local(inner: torch.optim.Optimizer, level: Level) -> None:
    """Raise ConfigError if `inner` averages gradients over all ranks already."""
    if isinstance(inner, Distributed) and not (level == "all" and inner._reducer.is_paused):
        raise ConfigError(
            "the inner optimizer is a DistributedOptimizer, which averages gradients in every step: give the plain "
            "one, or, after synchronous steps, make the rounds within `with inner.no_sync():`"
        )


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


def check_options(world: World, overlap_steps: int, mixing: float, level: Level, pace: Pace) -> None:
    """Raise ConfigError for options that cannot be."""
    if overlap_steps < 0:
        raise ConfigError(f"overlap_steps={overlap_steps} must be 0 or more")
    if not 0 <= mixing < 1:
        raise ConfigError(f"mixing={mixing} must be in [0, 1): the share of its own weights that a rank keeps")
    if isinstance(level, str) and level not in ("all", "nodes"):
        raise ConfigError(f'level={level!r} must be "all", "nodes", or a node\'s number for each rank')
    if not isinstance(level, str) and len(level) != world.size:
        raise ConfigError(f"level={list(level)} must have a node's number for each of {world.size} ranks")
    if pace not in ("equal", "proportional"):
        raise ConfigError(f'pace={pace!r} must be "equal" or "proportional"')
    if pace == "proportional" and level != "all":
        raise ConfigError('pace="proportional" needs level="all": the ranks of a node step together')


def check_names(world: World, compression: Any, strategy: str, named: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Raise ConfigError unless compression and strategy are there for these parameters."""
    try:
        resolve(compression)
        check_strategy(strategy, world, [parameter.device for _, parameter in named])
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
