"""A model's buffers at a synchronisation: the mean of floating-point ones that differ, rank 0's of the others.

What is the same on all ranks, as a mask of zeros and -inf, is no statistic, and stays as it is to the bit.
"""

import hashlib
from collections.abc import Sequence

import torch

from hvdkit.collectives import Collectives


class Buffers:
    """A moment's values of `buffers`, to be made the same on all ranks while training goes on, and then written."""

    def __init__(self, buffers: Sequence[torch.Tensor], state: Sequence[torch.Tensor] | None = None) -> None:
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        others = [buffer for buffer in buffers if not buffer.is_floating_point() and not buffer.is_complex()]
        self._buffers = [*floating, *others]
        if state is None:
            state = _flat(floating, torch.float64), _flat(others, torch.int64)
        self._means, self._wholes = state
        self._parts = [*_split(self._means, floating), *_split(self._wholes, others)]

    def combine(self, share: float, name: str, collectives: Collectives) -> None:
        """Exchange the values; `share` is this rank's weight, all ranks' sum to 1. Collective.

        A message of 16 bytes per buffer, then an all-reduce per kind of those that differ between ranks.
        """
        if not self._parts:
            return
        everyone = collectives.gather_objects([_digest(part) for part in self._parts], f"{name}.digests")
        differ = [len(set(digests)) > 1 for digests in zip(*everyone, strict=True)]
        weights: dict[torch.dtype, float] = {torch.float64: share, torch.int64: int(collectives.index == 0)}
        for dtype, weight in weights.items():
            parts = [
                part for part, is_other in zip(self._parts, differ, strict=True) if is_other and part.dtype == dtype
            ]
            if parts:
                flat = torch.cat(parts)
                flat = flat.mul_(weight) if weight else torch.zeros_like(flat)  # 0 times -inf would be NaN
                summed = collectives.all_reduce_async_(flat, f"{name}.{dtype}").wait()
                for part, values in zip(parts, summed.split([part.numel() for part in parts]), strict=True):
                    part.copy_(values)

    def state_dict(self) -> list[torch.Tensor]:
        """The values, which may be given to a new one as its `state`."""
        return [self._means, self._wholes]

    @torch.no_grad()
    def write(self) -> None:
        """Give the buffers the exchanged values."""
        for buffer, part in zip(self._buffers, self._parts, strict=True):
            buffer.copy_(part.view(buffer.shape))


def _flat(buffers: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    if not buffers:
        return torch.empty(0, dtype=dtype)
    return torch.cat([buffer.detach().reshape(-1).to(dtype) for buffer in buffers])


def _split(flat: torch.Tensor, buffers: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    parts: Sequence[torch.Tensor] = flat.split([buffer.numel() for buffer in buffers])
    return parts


def _digest(part: torch.Tensor) -> bytes:
    return hashlib.blake2b(part.cpu().numpy().tobytes(), digest_size=16).digest()
