"""Leaves out the largest elements too, as outliers: Model Breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795).

Of a tensor sorted by magnitude the first `gamma` share is left out, the next `density` share kept, the rest left out.
Elements that are as large as one kept are kept too.
"""

from collections.abc import Sequence

import torch

from hvdkit.merge.settings import Settings
from hvdkit.merge.sparsify.interface import Place
from hvdkit.merge.sparsify.magnitude import kept


class Breadcrumbs:
    """Keeps a share of `density` of the elements below the `gamma` largest ones, unscaled."""

    def ranks(self, count: int, density: float, settings: Settings) -> tuple[int, ...]:
        """See `Sparsifier`."""
        n_kept = kept(count, density)
        n_outliers = min(round(settings.gamma * count), count - n_kept)
        return n_outliers + 1, n_outliers + n_kept

    def apply_(
        self, block: torch.Tensor, magnitudes: Sequence[float], density: float, settings: Settings, place: Place
    ) -> None:
        """See `Sparsifier`."""
        largest, smallest = magnitudes
        size = block.abs()
        block.mul_((size <= largest) & (size >= smallest))
