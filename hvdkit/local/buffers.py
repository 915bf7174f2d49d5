"""A model's buffers at a synchronisation: the mean of floating-point ones, rank 0's of the others."""

from collections.abc import Sequence

import torch

from hvdkit.collectives import Collectives


class Buffers:
    """A moment's values of `buffers`, to be made the same on all ranks while training goes on, and then written."""

    def __init__(self, buffers: Sequence[torch.Tensor], state: Sequence[torch.Tensor] | None = None) -> None:
        self._floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._others = [buffer for buffer in buffers if not buffer.is_floating_point() and not buffer.is_complex()]
        if state is None:
            state = _flat(self._floating, torch.float64), _flat(self._others, torch.int64)
        self._means, self._wholes = state

    def combine(self, share: float, collectives: Collectives) -> None:
        """Exchange the values; `share` is this rank's weight, all ranks' sum to 1. Collective, two all-reduces."""
        if self._floating:
            collectives.all_reduce_async_(self._means.mul_(share), "hvdkit.local.buffers.means").wait()
        if self._others:
            collectives.all_reduce_async_(
                self._wholes.mul_(collectives.index == 0), "hvdkit.local.buffers.wholes"
            ).wait()

    def state_dict(self) -> list[torch.Tensor]:
        """The values, which may be given to a new one as its `state`."""
        return [self._means, self._wholes]

    @torch.no_grad()
    def write(self) -> None:
        """Give the buffers the exchanged values."""
        for buffers, flat in ((self._floating, self._means), (self._others, self._wholes)):
            for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(part.view(buffer.shape))


def _flat(buffers: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    if not buffers:
        return torch.empty(0, dtype=dtype)
    return torch.cat([buffer.detach().reshape(-1).to(dtype) for buffer in buffers])
