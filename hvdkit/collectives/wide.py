"""Tensors as MPI sees them: bytes to move, and blocks in a dtype that MPI can add."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hvdkit.collectives.reduction import wide_dtype


def as_bytes(data: torch.Tensor) -> Any:
    """`data`, (n,) contiguous, as a numpy array of bytes that shares its memory."""
    if data.dtype == torch.bfloat16:  # which numpy does not know
        data = data.view(torch.int16)
    return data.numpy().view(np.uint8)  # half the time of torch's view


def in_wide_blocks(data: torch.Tensor, block_bytes: int, factor: float) -> Iterator[torch.Tensor]:
    """Blocks of `data`, (n,) contiguous, times `factor`, to be reduced in place; in float32 for 16-bit values.

    What the caller has put into a block is back in `data` when the next is asked for.
    """
    wide = wide_dtype(data.dtype)
    length = block_bytes // wide.itemsize
    blocks = data.split(length) if data.numel() > length else (data,) if data.numel() else ()
    for block in blocks:
        work = block if wide == data.dtype else block.to(wide)
        if factor != 1.0:
            work.mul_(factor)
        yield work
        if work is not block:
            block.copy_(work)


def scaled(data: torch.Tensor, factor: float) -> torch.Tensor:
    """A copy of `data` in the dtype of its sums, times `factor`."""
    wide = data.to(wide_dtype(data.dtype), copy=True)
    return wide.mul_(factor) if factor != 1.0 else wide
