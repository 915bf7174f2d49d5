"""Samples chosen from others: several parts as one, or some of a part."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvdkit.data.batches import Samples
from hvdkit.data.sampler import Indices


class SelectedSamples(Samples):
    """The samples `chosen[i]` of `parts[i]`, one part after another; all parts have one context."""

    def __init__(self, parts: Sequence[Samples], chosen: Sequence[Indices]) -> None:
        super().__init__(np.empty(0, dtype=np.uint16), parts[0].context, parts[0].pad_id)
        self.parts, self.chosen = list(parts), list(chosen)
        self._ends = np.cumsum([len(indices) for indices in chosen])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, index: int, epoch: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        self._check(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[part - 1]) if part else 0)
        return self.parts[part].sample(int(self.chosen[part][place]), epoch)


def join_samples(parts: Sequence[Samples]) -> SelectedSamples:
    """All samples of all parts."""
    return SelectedSamples(parts, [np.arange(len(part)) for part in parts])


def sample_range(samples: Samples, begin: int, end: int) -> SelectedSamples:
    """Samples `begin` to `end` (not included)."""
    return SelectedSamples([samples], [np.arange(begin, end)])


def spread_samples(samples: Samples, count: int) -> SelectedSamples:
    """`count` samples evenly spread over `samples`, each about equally often where `count` is more than there are."""
    return SelectedSamples([samples], [np.arange(count) * len(samples) // count])
