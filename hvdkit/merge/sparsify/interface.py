"""What a sparsifier offers to the merge of a tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hvdkit.merge.settings import Settings


@dataclass(frozen=True)
class Place:
    """Where a block lies in its tensor, and what chance does there."""

    width: int
    """Length of the tensor's rows; a block is whole rows, or a piece of one."""
    generator: torch.Generator
    """Seeded by seed, model, tensor and block: the same draws in whatever order blocks are merged, on any rank."""


class Sparsifier(Protocol):
    """Sets some elements of a task vector to zero, and perhaps scales the others."""

    def ranks(self, count: int, density: float, settings: Settings) -> tuple[int, ...]:
        """Which of `count` elements `apply_` wants the magnitudes of: sorted by falling magnitude, from 1 on."""

    def apply_(
        self, block: torch.Tensor, magnitudes: Sequence[float], density: float, settings: Settings, place: Place
    ) -> None:
        """Sparsify `block`, (n,) float32 or float64, in place; `magnitudes` are those that `ranks` asked for."""
