"""A direct call that was checked and prepared once, and tensors as algorithms take them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.group import Group
from hvdkit.collectives.meeting import Call
from hvdkit.collectives.reduction import reduction_for


@dataclass(frozen=True)
class Plan:
    """A call that was checked, and what does it."""

    call: Call
    method: Any
    reduction: Any
    """None where it depends on the weights, which differ from call to call."""
    shape: tuple[int, ...] = ()
    """Of this rank's result, where the call makes one: an all-gather of equal parts, or a reduce-scatter."""
    counts: Sequence[int] = ()
    """Then of every rank's part, in numbers of the dtype that is moved."""


def prepare(call: Call, algorithms: Algorithms, group: Group) -> Plan:
    """The plan of `call`, as far as it is the same whenever the call is made."""
    collective = call.kind.removesuffix("_into")
    reduces = collective in ("all_reduce", "all_reduce_many", "reduce", "reduce_scatter")
    chosen_now = call.kind in ("all_reduce", "reduce", "reduce_scatter", "broadcast") or collective != call.kind
    algorithm, lengths = call.algorithm, [0]
    if call.kind == "reduce_scatter":
        base, extra = divmod(call.shape[0], group.size)
        lengths = [base + (rank < extra) for rank in range(group.size)]
    elif call.kind == "all_gather" and call.rows >= 0:  # for the case that all bring as many
        lengths, chosen_now = [call.rows] * group.size, True
        nbytes = call.rows * call.count * call.dtype.itemsize
        algorithm = algorithms.resolve("all_gather", nbytes, algorithm)
    width = math.prod(call.shape[1:]) * (2 if call.dtype.is_complex else 1)
    own = sum(lengths) if collective == "all_gather" else lengths[group.index % len(lengths)]
    return Plan(
        call,
        algorithms.method(collective, algorithm) if chosen_now else None,
        reduction_for(call.op, group.size, call.dtype) if reduces and not call.is_weighted else None,
        (own, *call.shape[1:]),
        [length * width for length in lengths],
    )


def traits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.device, tensor.layout


def flat_of(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in one dimension, itself where it is contiguous."""
    if tensor.dim() == 1 and tensor.stride(0) == 1 and not tensor.is_neg() and not tensor.is_conj():
        return tensor
    flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1)
    return flat.as_strided(flat.shape, (1,))  # a single element may have any stride


def movable_view(flat: torch.Tensor) -> torch.Tensor:
    """Values of dtypes that are only moved, as numbers of a dtype that every algorithm knows."""
    if flat.dtype == torch.bool:
        return flat.view(torch.uint8)
    return torch.view_as_real(flat).view(-1) if flat.dtype.is_complex else flat
