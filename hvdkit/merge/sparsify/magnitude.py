"""Keeps the elements of largest magnitude: the trimming of TIES (Yadav et al. 2023, arXiv 2306.01708, section 4.1).

Each tensor is trimmed by itself (the code of the paper trims a whole model at once). Elements of the same magnitude
as the last one kept are kept too: which of them came first would be chance.
"""

from collections.abc import Sequence

import torch

from hvdkit.merge.settings import Settings
from hvdkit.merge.sparsify.interface import Place


class Magnitude:
    """Keeps round(density x count) elements, at least one, unscaled."""

    def ranks(self, count: int, density: float, settings: Settings) -> tuple[int, ...]:
        """See `Sparsifier`."""
        return () if density == 1 else (kept(count, density),)

    def apply_(
        self, block: torch.Tensor, magnitudes: Sequence[float], density: float, settings: Settings, place: Place
    ) -> None:
        """See `Sparsifier`."""
        if magnitudes:
            block.mul_(block.abs().ge_(magnitudes[0]))


def kept(count: int, density: float) -> int:
    """How many of `count` elements a density means: at least one, also of a tensor of fewer than 1 / density."""
    return min(count, max(1, round(density * count)))
