"""The buckets of an exchange under a bucket compressor, and what it keeps of each parameter between steps."""

from collections.abc import Sequence

import torch

from hvdkit.collectives import Collectives
from hvdkit.optim.buckets import Bucket
from hvdkit.optim.compression import BucketCompressor, ParameterState, SumsEach

Residuals = dict[int, ParameterState]
"""By the index of the parameter; survives a new plan of buckets."""


class BucketSums:
    """Sums `buckets` by `compressor`, going on from the `residuals` of earlier plans."""

    def __init__(self, compressor: BucketCompressor, buckets: Sequence[Bucket], residuals: Residuals) -> None:
        self._buckets = buckets
        self._states = [compressor.for_bucket(bucket.shapes, bucket.dtype, bucket.device) for bucket in buckets]
        for bucket, state in zip(buckets, self._states, strict=True):
            state.load_state_dict([residuals.get(index, {}) for index in bucket.indices])

    def sum_(self, number: int, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """Sum bucket `number`'s `flat` over ranks, in place; returns the bytes that this rank sent. Collective."""
        return self._states[number].sum_(flat, name, collectives)

    def takes_parts(self, number: int) -> bool:
        """Whether bucket `number` can be summed by `sum_parts_`."""
        return isinstance(self._states[number], SumsEach)

    def sum_parts_(
        self, number: int, parts: Sequence[torch.Tensor], factor: float, name: str, collectives: Collectives
    ) -> float:
        """Sum the gradients of bucket `number` times `factor`, each (n,), where they lie; see `sum_`. Collective."""
        state = self._states[number]
        assert isinstance(state, SumsEach)
        return state.sum_each_(parts, factor, name, collectives)

    def residuals(self) -> Residuals:
        """What to go on from, sharing memory with the state."""
        return {
            index: kept
            for bucket, state in zip(self._buckets, self._states, strict=True)
            for index, kept in zip(bucket.indices, state.state_dict(), strict=True)
        }
