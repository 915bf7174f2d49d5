"""Sums of pseudo-gradients over ranks: whole, rounded to 16 bits with error feedback, or by a bucket compressor."""

from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.collectives import Collectives
from hvdkit.optim.compression import BucketCompression, BucketCompressor, NoneCompressor, ParameterState
from hvdkit.optim.compression.residual import Residual
from hvdkit.optim.compression.wire import all_reduce


def sum_by(compression: Any, shapes: Sequence[torch.Size], flat: torch.Tensor) -> BucketCompression:
    """What sums tensors like `flat`, (n,), that holds parameters of these `shapes`, by a kind of `Compression`."""
    if isinstance(compression, BucketCompressor):
        return compression.for_bucket(shapes, flat.dtype, flat.device)
    if compression is NoneCompressor:
        return Whole()
    return Rounded(compression, shapes, flat)


class Whole:
    """A plain sum; see `BucketCompression`. Sends 2(p-1)/p of the bytes."""

    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """See `BucketCompression`."""
        return all_reduce(flat, name, collectives)[1]

    def state_dict(self) -> list[ParameterState]:
        """Nothing."""
        return []

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """Nothing."""


class Rounded:
    """A sum of values rounded by an elementwise compressor (bf16, say), each rank's rounding kept for the next one.

    The optimizer sends rounded gradients without that; pseudo-gradients are few, and each of them counts.
    """

    def __init__(self, compressor: Any, shapes: Sequence[torch.Size], flat: torch.Tensor) -> None:
        self._compressor = compressor
        self._residual = Residual(shapes, flat.dtype, flat.device)

    @torch.no_grad()
    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """See `BucketCompression`."""
        residual = self._residual.flat.add_(flat)
        rounded, context = self._compressor.compress(residual)
        residual.sub_(self._compressor.decompress(rounded, context))
        summed, sent = all_reduce(rounded, name, collectives)
        flat.copy_(self._compressor.decompress(summed, context))
        return sent

    def state_dict(self) -> list[ParameterState]:
        """See `BucketCompression`."""
        return self._residual.state_dict()

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """See `BucketCompression`."""
        self._residual.load_state_dict(state)
