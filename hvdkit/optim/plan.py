"""What the ranks agree on before they reduce their first gradients: same parameters, one order, one name."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import HvdkitError
from hvdkit.optim.weighting import Weighting, combine

_numbers = itertools.count()


class Overlap(IntEnum):
    """When buckets may be reduced while backward runs."""

    NEVER = 0
    WHILE_ALONE = 1
    """While no other optimizer exchanges over the same ranks, which might meet them in another order."""
    ALWAYS = 2


@dataclass(frozen=True)
class Observation:
    """What one rank saw in the backward pass before the agreement."""

    order: list[int]
    """Indices of parameters in the order in which their gradients became ready; may be empty."""
    fires: list[int]
    """How often each parameter's gradient was accumulated in that one backward (more than once where reentrant
    checkpointing uses a parameter in several segments)."""
    sparse: list[bool]
    """Which gradients were sparse."""


@dataclass(frozen=True)
class Agreement:
    """The same on every rank."""

    number: int
    """Of the optimizer."""
    order: list[int]
    expected_fires: list[int]
    sparse: list[bool]
    fixed_weights: list[float]
    """Of the ranks."""
    unit: float
    """The unit of weighted gradients on the wire in the first step; see `weighting`."""
    overlap: Overlap
    """What all ranks allow."""

    @property
    def key(self) -> str:
        """What the names of all its collectives begin with."""
        return f"hvdkit.optimizer.{self.number}"

    @property
    def fixed_total(self) -> float:
        """Sum of the ranks' fixed weights."""
        return sum(self.fixed_weights)


def agree(
    collectives: Collectives,
    names: Sequence[str],
    parameters: Sequence[torch.Tensor],
    active: Sequence[bool],
    seen: Observation,
    weight: Weighting,
    overlap: Overlap = Overlap.NEVER,
) -> Agreement:
    """Compare all ranks' parameters and settle order, sparsity and name. Collective, once per plan.

    `active` says which parameters take part. The order is the first rank's; parameters that it did not use follow,
    last registered first. A rank that has called `join()` is not asked, and counts with weight 1 as in Horovod.
    Raises HvdkitError on all ranks if their parameters differ.
    """
    signature = [
        (name, tuple(p.shape), str(p.dtype), trains) for name, p, trains in zip(names, parameters, active, strict=True)
    ]
    everyone: list[tuple[int, Any, Observation, list[float], float, Overlap] | None] = collectives.gather_objects(
        (next(_numbers), signature, seen, weight.encode(), weight.fixed, overlap), name="hvdkit.optimizer.agree"
    )
    gathered = [item for item in everyone if item is not None]
    _check_same_parameters([item[1] for item in gathered])
    first = gathered[0][2]
    order = [*first.order, *(i for i in reversed(range(len(parameters))) if i not in set(first.order))]
    fixed_weights = [1.0 if item is None else item[4] for item in everyone]
    return Agreement(
        number=gathered[0][0],
        order=[index for index in order if active[index]],
        expected_fires=[max(1, *(item[2].fires[i] for item in gathered)) for i in range(len(parameters))],
        sparse=[any(item[2].sparse[i] for item in gathered) for i in range(len(parameters))],
        fixed_weights=fixed_weights,
        unit=combine(torch.tensor([item[3] for item in gathered]).sum(dim=0), sum(fixed_weights)).unit or 1.0,
        overlap=min(item[5] for item in gathered),
    )


def _check_same_parameters(signatures: list[list[tuple[Any, ...]]]) -> None:
    for rank, other in enumerate(signatures):
        if other == signatures[0]:
            continue
        if len(other) != len(signatures[0]):
            what = f"the first rank's optimizer has {len(signatures[0])} parameters, rank {rank}'s has {len(other)}"
        else:
            mine, theirs = next(pair for pair in zip(signatures[0], other, strict=True) if pair[0] != pair[1])
            words = "{} {} {} (trained: {})"
            what = f"the first rank has {words.format(*mine)}, rank {rank} has {words.format(*theirs)}"
        raise HvdkitError(
            f"DistributedOptimizer: ranks disagree on the parameters: {what}; every rank must build the same model, "
            "freeze the same parameters, and step its optimizers in the same order"
        )
