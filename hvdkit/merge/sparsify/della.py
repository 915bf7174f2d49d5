"""Leaves out elements by chance, small ones more often: MAGPRUNE of DELLA (Deep et al. 2024, arXiv 2406.11617).

In each row the elements are ranked by magnitude; the probability to keep one rises linearly with its rank, from
density - epsilon / 2 to density + epsilon / 2 (in steps of epsilon / (n - 1), so that both ends are met; the paper's
are epsilon / n), and what is kept is divided by its own probability. Rows longer than a block are ranked in pieces.
"""

from collections.abc import Sequence

import torch

from hvdkit.merge.settings import Settings
from hvdkit.merge.sparsify.interface import Place


class Della:
    """Keeps elements with a probability by their rank in their row."""

    def ranks(self, count: int, density: float, settings: Settings) -> tuple[int, ...]:
        """See `Sparsifier`."""
        return ()

    def apply_(
        self, block: torch.Tensor, magnitudes: Sequence[float], density: float, settings: Settings, place: Place
    ) -> None:
        """See `Sparsifier`."""
        rows = block.view(-1, min(place.width, block.numel()))
        probability = keep_probability(rows, density, settings.epsilon)
        chance = torch.rand(rows.shape, generator=place.generator, dtype=rows.dtype)
        rows.mul_(chance.lt_(probability).div_(probability))


def keep_probability(rows: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """The probability of each element of `rows`, (r, n); epsilon is cut to what leaves probabilities in (0, 1]."""
    width = rows.shape[1]
    spread = min(epsilon, 2 * (1 - density), 1.98 * density)
    steps = torch.linspace(density - spread / 2, density + spread / 2, width, dtype=rows.dtype)
    if width == 1:
        steps.fill_(density)
    by_size = rows.abs().argsort(dim=1, stable=True)
    return torch.empty_like(rows).scatter_(1, by_size, steps.expand_as(rows))
