"""Samples of a fixed length out of a stream of token ids, and batches of them.

Causal: sample i reads tokens [i*T, i*T+T) and predicts [i*T+1, i*T+T+1). Masked: sample i reads tokens [i*T, i*T+T)
and predicts the 15% that were chosen, of which 80% were replaced by the mask, 10% by a random token and 10% left
(Devlin et al. 2018, section 3.1). What is chosen depends on (seed, epoch, sample) only, never on the rank.

The last, shorter sample is kept, so that no token is lost: it is filled with the pad id, which no target asks for.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IGNORED = -100
"""The target that counts for nothing, torch's `cross_entropy` default."""

_CHOSEN = 0.15
_MASKED = 0.8
_RANDOM = 0.1


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of b samples of t tokens; b may be 0. `n_targets` counts the targets that are not IGNORED."""

    inputs: torch.Tensor
    """(b, t) int64."""
    targets: torch.Tensor
    """(b, t) int64, IGNORED where nothing is to be predicted."""
    n_targets: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.inputs.to(device), self.targets.to(device), self.n_targets)

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of at most `rows` samples, in order; one empty batch if this one is empty."""
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1")
        pairs = zip(self.inputs.split(rows), self.targets.split(rows), strict=True)
        return [Batch(inputs, targets, _count(targets)) for inputs, targets in pairs]


class Samples(ABC):
    """Samples of `context` tokens over `ids` ((n,) of an unsigned integer dtype, usually memory-mapped)."""

    def __init__(self, ids: npt.NDArray[Any], context: int, pad_id: int) -> None:
        if context < 1:
            raise ValueError(f"context={context} must be at least 1")
        self.ids = ids
        self.context = context
        self.pad_id = pad_id

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples, the shorter last one included."""

    @abstractmethod
    def sample(self, index: int, epoch: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Inputs and targets of one sample, each (context,) int64."""

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64], epoch: int | None = None) -> Batch:
        """The samples `indices` (any number, also none) as a batch; `epoch` None means the fixed choice of masks."""
        inputs = np.empty((len(indices), self.context), dtype=np.int64)
        targets = np.empty_like(inputs)
        for row, index in enumerate(indices):
            inputs[row], targets[row] = self.sample(int(index), epoch)
        wanted = torch.from_numpy(targets)
        return Batch(torch.from_numpy(inputs), wanted, _count(wanted))

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as a copy of the whole file; a worker process maps the file again instead.
        state = dict(self.__dict__)
        ids = self.ids
        if isinstance(ids, np.memmap) and ids.filename is not None:
            state["ids"] = (str(ids.filename), ids.dtype.str, ids.shape[0])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["ids"], tuple):
            path, dtype, count = state["ids"]
            state = {**state, "ids": np.memmap(path, dtype=dtype, mode="r", shape=(count,))}
        self.__dict__.update(state)

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is not one of {len(self)}")


class CausalSamples(Samples):
    """Next-token prediction: n tokens make ceil((n - 1) / context) samples; each token but the first is asked once."""

    def __len__(self) -> int:
        return -(-max(0, len(self.ids) - 1) // self.context)

    def sample(self, index: int, epoch: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        self._check(index)
        begin = index * self.context
        window = self.ids[begin : begin + self.context + 1]
        inputs = np.full(self.context, self.pad_id, dtype=np.int64)
        targets = np.full(self.context, IGNORED, dtype=np.int64)
        inputs[: len(window) - 1] = window[:-1]
        targets[: len(window) - 1] = window[1:]
        return inputs, targets


class MaskedSamples(Samples):
    """Prediction of hidden tokens, as BERT's: n tokens make ceil(n / context) samples.

    `kept_ids` (separators, for instance) are never chosen. Random replacements come from [0, vocab_size).
    """

    def __init__(
        self,
        ids: npt.NDArray[Any],
        context: int,
        pad_id: int,
        *,
        mask_id: int,
        vocab_size: int,
        seed: int,
        kept_ids: Sequence[int] = (),
    ) -> None:
        super().__init__(ids, context, pad_id)
        self.mask_id = mask_id
        self.vocab_size = vocab_size
        self.seed = seed
        self.kept_ids = tuple(kept_ids)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.context)

    def sample(self, index: int, epoch: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        self._check(index)
        window = self.ids[index * self.context : (index + 1) * self.context].astype(np.int64)
        # Key 0 is the fixed choice of validation, so that evaluations compare.
        key = [self.seed, 0 if epoch is None else epoch + 1, index]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        draws = random.random((2, self.context))[:, : len(window)]
        others = random.integers(0, self.vocab_size, self.context)[: len(window)]
        chosen = (draws[0] < _CHOSEN) & ~np.isin(window, self.kept_ids)
        inputs = np.full(self.context, self.pad_id, dtype=np.int64)
        targets = np.full(self.context, IGNORED, dtype=np.int64)
        targets[: len(window)][chosen] = window[chosen]
        seen = np.where(chosen & (draws[1] < _MASKED), self.mask_id, window)
        inputs[: len(window)] = np.where(chosen & (draws[1] >= 1 - _RANDOM), others, seen)
        return inputs, targets


def _count(targets: torch.Tensor) -> int:
    return int((targets != IGNORED).sum())
