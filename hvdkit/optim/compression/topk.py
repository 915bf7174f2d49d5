"""Only the largest values of a bucket, with their places; the rest waits in the residual.

Sources: A. F. Aji, K. Heafield, "Sparse Communication for Distributed Gradient Descent", arXiv:1704.05021; Y. Lin et
al., "Deep Gradient Compression", arXiv:1712.01887, section 3 (a threshold from a sample finds the largest values
without sorting: on a CPU 8 times as fast as `torch.topk` on 4 million values). S. U. Stich et al., "Sparsified SGD
with Memory", arXiv:1809.07599, prove convergence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from hvdkit.collectives import Collectives
from hvdkit.optim.compression.interface import ParameterState
from hvdkit.optim.compression.residual import Residual, check_flat, real_dtype, real_shapes
from hvdkit.optim.compression.wire import all_gather

_SAMPLE = 65536


@dataclass(frozen=True)
class TopK:
    """The share `ratio` of each bucket's values that is largest in magnitude, and at least one."""

    ratio: float = 0.01

    name: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"topk: ratio={self.ratio} must be above 0 and at most 1")

    def for_bucket(
        self, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device | str
    ) -> "TopKCompression":
        """See `BucketCompressor`. Raises ValueError for 2^31 values or more, whose places are not counted in int32."""
        return TopKCompression(self, shapes, dtype, torch.device(device))


class TopKCompression:
    """One bucket's residual. Sends (p-1) * 8 bytes for each of k = ceil(ratio * n) values (12 for float64)."""

    def __init__(self, options: TopK, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = real_dtype(dtype)
        count = sum(shape.numel() for shape in real_shapes(shapes, dtype))
        if count >= 2**31:
            raise ValueError(f"topk: a bucket of {count} values; it must have fewer than 2^31: lower bucket_bytes")
        self._residual = Residual(real_shapes(shapes, dtype), dtype, device)
        self._chosen = min(count, math.ceil(options.ratio * count))

    @torch.no_grad()
    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """See `BucketCompression`. One all-gather of places and values."""
        residual = self._residual.flat
        check_flat(flat, residual.numel(), self._dtype)
        if not self._chosen:
            return 0.0
        whole = residual + flat
        magnitude = whole.abs()
        if bool(torch.isfinite(magnitude.max())):
            places = largest(magnitude, self._chosen)
            values = whole[places]
        else:
            places = torch.arange(self._chosen, device=flat.device)
            values = torch.full_like(whole[places], float("nan"))
        payload = torch.cat([places.to(torch.int32), values.view(torch.int32)])
        gathered, sent = all_gather(payload, name, collectives)
        received = [(part[: self._chosen].long(), self._values(part)) for part in gathered]
        if not all(bool(torch.isfinite(theirs).all()) for _, theirs in received):
            flat.fill_(float("nan"))
            return sent
        residual.copy_(whole).index_fill_(0, places, 0)
        whole.zero_()
        for at, theirs in received:  # no place comes twice from one rank, so the order of the sums is that of ranks
            whole.index_add_(0, at, theirs)
        flat.copy_(whole)
        return sent

    def _values(self, payload: torch.Tensor) -> torch.Tensor:
        # A copy: a view as float64 needs an even number of int32 before it.
        return payload[self._chosen :].clone().view(self._residual.flat.dtype)

    def state_dict(self) -> list[ParameterState]:
        """See `BucketCompression`."""
        return self._residual.state_dict()

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """See `BucketCompression`."""
        self._residual.load_state_dict(state)


def largest(magnitude: torch.Tensor, count: int) -> torch.Tensor:
    """The places, (count,) int64 in no order, of the `count` largest of `magnitude`, (n,) >= 0 and finite.

    A sample of every s-th value gives a threshold that a few more than `count` values should reach, and only those
    are compared. A sample that misleads costs time, not exactness.
    """
    total = magnitude.numel()
    if count == total:
        return torch.arange(total, device=magnitude.device)
    sample = magnitude[:: max(1, total // _SAMPLE)]
    expected = count / total * sample.numel()
    rank = min(sample.numel(), math.ceil(expected + 4 * math.sqrt(expected) + 4))
    threshold = sample.kthvalue(sample.numel() - rank + 1).values
    if threshold == 0:  # mostly zeros: any of them will do
        candidates = torch.nonzero(magnitude).flatten()
        missing = count - candidates.numel()
        if missing > 0:
            return torch.cat([candidates, torch.nonzero(magnitude == 0).flatten()[:missing]])
    else:
        candidates = torch.nonzero(magnitude >= threshold).flatten()
    if candidates.numel() < count:
        return magnitude.topk(count, sorted=False).indices
    return candidates[magnitude[candidates].topk(count, sorted=False).indices]
