"""bfloat16 for operations that do not know it, by what is sent in its place.

A reduction sends float32 and rounds its result once. A movement (all-gather, broadcast, all-to-all) sends the same
bits as int16. An asynchronous operation returns Horovod's handle, and the handle itself knows what remains to be done
with its result: Horovod gives the same numbers again after a restart, so a table of numbers would mix them up.
"""

from collections.abc import Callable
from typing import Any

import torch


class PendingHandle(int):
    """Horovod's handle of an operation whose result must still go through `finisher`."""

    finisher: Callable[[Any], Any]


def is_bfloat16(tensor: Any) -> bool:
    """Whether `tensor` is a dense or sparse bfloat16 tensor."""
    return isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bfloat16


def any_bfloat16(tensors: Any) -> bool:
    """Whether one of a sequence of tensors is bfloat16."""
    return any(is_bfloat16(tensor) for tensor in tensors)


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """float32 of a bfloat16 tensor (differentiable); any other tensor itself."""
    return tensor.float() if is_bfloat16(tensor) else tensor


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """An int16 view of a bfloat16 tensor, sharing its memory; any other tensor itself."""
    return tensor.detach().view(torch.int16) if is_bfloat16(tensor) else tensor


def narrow_like(result: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """`result` rounded to bfloat16 if `original` is bfloat16."""
    return result.to(torch.bfloat16) if is_bfloat16(original) else result


def from_bits(result: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """`result` read as bfloat16 if `original` is bfloat16."""
    return result.view(torch.bfloat16) if is_bfloat16(original) else result


@torch.no_grad()
def store(result: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Put a widened `result` into `original`, where they are not one tensor; returns `original`."""
    if result is not original:
        original.copy_(result)
    return original


def finish_later(handle: int, finisher: Callable[[Any], Any]) -> int:
    """`handle`, such that `finisher` is applied to the result when it is synchronised."""
    pending = PendingHandle(handle)
    pending.finisher = finisher
    return pending


def finish(handle: Any, result: Any) -> Any:
    """Apply what was left to do with `handle`'s result (None if it was synchronised before)."""
    return handle.finisher(result) if isinstance(handle, PendingHandle) and result is not None else result
