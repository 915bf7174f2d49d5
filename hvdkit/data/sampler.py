"""Which samples a rank takes at which place of the epoch.

An epoch is one permutation of all samples, drawn from (seed, epoch) alone. It is cut in global batches, and a
global batch in contiguous near-equal pieces, one per rank. So the union over the ranks is the same whatever their
number, and an epoch loses and repeats nothing: its last global batch is simply smaller, and there a rank may get no
sample at all (train with weights then, see `DistributedOptimizer.weigh`).

A place is (epoch, samples consumed of it) rather than a step number, so that a run goes on exactly where it stopped
even if the global batch has changed with the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Order = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Position:
    """A place in the stream of samples: `consumed` samples of `epoch` are done. The whole state of the sampler."""

    epoch: int = 0
    consumed: int = 0


class ShardedSampler:
    """The samples of `rank` in each global batch of `global_batch` samples out of `n_samples`, shuffled by `seed`.

    No call communicates. Raises ValueError for a batch, a number of samples or a rank that cannot be.
    """

    def __init__(self, n_samples: int, global_batch: int, rank: int, size: int, seed: int) -> None:
        if n_samples < 1 or global_batch < 1:
            raise ValueError(f"n_samples={n_samples} and global_batch={global_batch} must be at least 1")
        if not 0 <= rank < size:
            raise ValueError(f"rank={rank} is not a rank of a world of size {size}; use 0..{size - 1}")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.n_samples = n_samples
        self.global_batch = global_batch
        self.rank = rank
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._order: Order = np.empty(0, dtype=np.uint32)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of one epoch, the smaller last one included."""
        return -(-self.n_samples // self.global_batch)

    def global_indices(self, position: Position) -> Indices:
        """All ranks' samples of the global batch at `position`: (k,) int64 with k <= global_batch, at least 1."""
        if not 0 <= position.consumed < self.n_samples:
            raise ValueError(f"{position} is outside an epoch of {self.n_samples} samples")
        order = self._permutation(position.epoch)
        return order[position.consumed : position.consumed + self.global_batch].astype(np.int64)

    def indices(self, position: Position, shares: Sequence[float] | None = None) -> Indices:
        """This rank's samples of the global batch at `position`: (k,) int64, possibly empty.

        In proportion to `shares` where they are given: one number per rank, the same on all, 0 or more.
        """
        chosen = self.global_indices(position)
        if shares is None:
            begin, end = share(len(chosen), self.rank, self.size)
        else:
            begin, end = share_in_proportion(len(chosen), self.rank, shares)
        return chosen[begin:end]

    def following(self, position: Position) -> Position:
        """The place after the global batch at `position`."""
        consumed = position.consumed + self.global_batch
        return Position(position.epoch + 1) if consumed >= self.n_samples else Position(position.epoch, consumed)

    def positions(self, start: Position, steps: int) -> Iterator[Position]:
        """The places of `steps` global batches from `start` on."""
        for _ in range(steps):
            yield start
            start = self.following(start)

    def _permutation(self, epoch: int) -> Order:
        if epoch != self._epoch:
            # 4 bytes a sample, shuffled in place: 100 million samples take 400 MB, not 1.6 GB.
            dtype = np.uint32 if self.n_samples < 2**32 else np.uint64
            order: Order = np.arange(self.n_samples, dtype=dtype)
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))).shuffle(order)
            self._epoch, self._order = epoch, order
        return self._order


def share(count: int, rank: int, size: int) -> tuple[int, int]:
    """Begin and end of `rank`'s contiguous, near-equal piece of `count` things."""
    return count * rank // size, count * (rank + 1) // size


def share_in_proportion(count: int, rank: int, shares: Sequence[float]) -> tuple[int, int]:
    """Begin and end of `rank`'s contiguous piece of `count` things, pieces being in proportion to `shares`."""
    upto = [sum(shares[:number]) for number in range(len(shares) + 1)]
    return round(count * upto[rank] / upto[-1]), round(count * upto[rank + 1] / upto[-1])


def evaluation_indices(n_samples: int, batch_size: int, rank: int, size: int) -> Iterator[Indices]:
    """This rank's samples in order, in batches of at most `batch_size`; over all ranks each sample comes once.

    Ranks may get different numbers of batches (none, with more ranks than samples): add up sums and counts, and
    reduce them after the loop.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    begin, end = share(n_samples, rank, size)
    for first in range(begin, end, batch_size):
        yield np.arange(first, min(first + batch_size, end), dtype=np.int64)
