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
    """A sum in full precision, each part of it rounded by an elementwise compressor (bf16, say), on a rank each.

    That rank keeps what it rounded off for the next sum. Sends (p-1)/p of the bytes of the values and of the rounded
    ones: for 16 bits 3/4 of `Whole`'s. Rejected: rounded terms, whose sum is rounded again with nobody to keep that,
    and which most collectives send as float32 anyway, to add them.
    """

    def __init__(self, compressor: Any, shapes: Sequence[torch.Size], flat: torch.Tensor) -> None:
        self._compressor = compressor
        self._residual = Residual(shapes, flat.dtype, flat.device)

    @torch.no_grad()
    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """See `BucketCompression`."""
        ranks, index = collectives.size, collectives.index
        base, extra = divmod(flat.numel(), ranks)
        counts = [base + (rank < extra) for rank in range(ranks)]
        residual = self._residual.flat.split(counts)[index]  # zeros in the other ranks' parts
        part = torch.empty_like(residual)
        collectives.reduce_scatter_into(flat, part, counts, f"{name}.parts")
        residual.add_(part)
        rounded, context = self._compressor.compress(residual)
        residual.sub_(self._compressor.decompress(rounded, context))
        whole = torch.empty(flat.shape, dtype=rounded.dtype, device=flat.device)
        collectives.all_gather_into(rounded, whole, counts, f"{name}.whole")
        flat.copy_(self._compressor.decompress(whole, context))
        return (ranks - 1) / ranks * (flat.nbytes + whole.nbytes)

    def state_dict(self) -> list[ParameterState]:
        """See `BucketCompression`."""
        return self._residual.state_dict()

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """See `BucketCompression`."""
        self._residual.load_state_dict(state)
