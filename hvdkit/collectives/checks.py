"""What hvdkit's own algorithms take; each check raises TypeError or ValueError before anything is communicated."""

from collections.abc import Iterable, Sequence

import torch

from hvdkit.collectives.reduction import MOVABLE, REDUCIBLE, reduction_for


def check_reducible(kind: str, tensor: torch.Tensor, op: str) -> None:
    """`tensor` can be reduced by `op`."""
    _check_device(kind, tensor)
    if tensor.dtype not in REDUCIBLE:
        raise TypeError(f"{kind}: {tensor.dtype} cannot be reduced; use one of {_names(REDUCIBLE)}")
    reduction_for(op, 1, tensor.dtype)


def check_movable(kind: str, tensor: torch.Tensor) -> None:
    """`tensor` can be sent."""
    _check_device(kind, tensor)
    if tensor.dtype not in MOVABLE:
        raise TypeError(f"{kind}: {tensor.dtype} cannot be sent; use one of {_names(MOVABLE)}")


def check_parts(kind: str, whole: torch.Tensor, part: torch.Tensor, counts: Sequence[int], index: int) -> None:
    """Raise ValueError unless `whole` is cut in parts of `counts` elements and `part` can hold number `index`."""
    if whole.shape != (sum(counts),) or part.shape != (counts[index],) or part.dtype != whole.dtype:
        raise ValueError(
            f"{kind}: parts of {list(counts)} elements do not go with {whole.dtype} {tuple(whole.shape)} and, on rank "
            f"{index}, {part.dtype} {tuple(part.shape)}"
        )
    if not whole.is_contiguous() or not part.is_contiguous():
        raise ValueError(f"{kind}: the tensors must be contiguous")


def check_out(kind: str, tensor: torch.Tensor, out: torch.Tensor) -> None:
    """Raise ValueError unless `out` can hold rows as those of `tensor`."""
    shape = tensor.shape[1:]
    if out.dtype != tensor.dtype or out.device != tensor.device or not out.dim() or out.shape[1:] != shape:
        raise ValueError(
            f"{kind}: out={out.dtype} {tuple(out.shape)} on {out.device} cannot hold rows of {tensor.dtype} "
            f"{tuple(shape)} on {tensor.device}"
        )
    if not out.is_contiguous() or out.is_neg() or out.is_conj() or out.requires_grad:
        raise ValueError(f"{kind}: out= must be contiguous and must not require gradients")


def check_root(kind: str, root: int, size: int) -> None:
    """Raise ValueError unless `root` is one of `size` ranks."""
    if not 0 <= root < size:
        raise ValueError(f"{kind}: root={root} is not a rank of this group (size {size}); use 0..{size - 1}")


def check_shared(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ValueError unless there can be a shared tensor of this `shape` and `dtype`."""
    if min(shape, default=0) < 0 or dtype not in REDUCIBLE:
        raise ValueError(
            f"empty_shared: shape {shape} of {dtype}: lengths of 0 or more, and a dtype of {_names(REDUCIBLE)}"
        )


def _check_device(kind: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(
            f"{kind}: hvdkit's own algorithms take dense tensors on the CPU, not {tensor.layout} on {tensor.device}; "
            'use strategy="horovod"'
        )


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
