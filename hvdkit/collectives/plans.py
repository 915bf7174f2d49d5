"""A direct call that was checked and prepared once, and tensors as algorithms take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hvdkit.collectives.meeting import Call


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
