"""Leaves out elements by chance and scales the rest by 1 / density: DARE (Yu et al. 2023, arXiv 2311.03099, eq. 2).

The expectation of every element is the element itself, in a tensor of any size.
"""

from collections.abc import Sequence

import torch

from hvdkit.merge.settings import Settings
from hvdkit.merge.sparsify.interface import Place


class Dare:
    """Keeps each element with probability `density`."""

    def ranks(self, count: int, density: float, settings: Settings) -> tuple[int, ...]:
        """See `Sparsifier`."""
        return ()

    def apply_(
        self, block: torch.Tensor, magnitudes: Sequence[float], density: float, settings: Settings, place: Place
    ) -> None:
        """See `Sparsifier`."""
        if density == 1:
            return
        chance = torch.rand(block.shape, generator=place.generator, dtype=block.dtype)
        block.mul_(chance.lt_(density).div_(density))
