"""What a bucket compressor offers to the optimizer: one bucket's gradients in, their approximate sum out.

Rejected: Horovod's `compress` and `decompress` around an all-reduce. Quantised values, chosen indices and factors of
a matrix cannot be summed by one all-reduce, and what was not sent must be kept from step to step.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch

from hvdkit.collectives import Collectives

ParameterState = dict[str, torch.Tensor]
"""What is kept of one parameter between steps. "error": what this rank has not sent yet, in the parameter's shape
(a complex one's, with a last dimension of 2), float32 or float64; other keys are the same on every rank."""


class BucketCompression(Protocol):
    """The state of one bucket, and the sum of its gradients over ranks."""

    def sum_(self, flat: torch.Tensor, name: str, collectives: Collectives) -> float:
        """Replace `flat` by its approximate sum over all ranks; returns the bytes that this rank sent. Collective.

        `flat`: (n,) float16, bfloat16, float32 or float64, contiguous: this rank's contribution, already weighted;
        a rank with nothing to give passes zeros. Afterwards it has the same bits on every rank, given collectives
        that give every rank the same bits. What was not sent is added to the next call's `flat` on this rank.

        If any rank's contribution holds NaN or an infinity, all of `flat` is NaN on every rank, and no rank's state
        changes. Raises ValueError for a `flat` of another length or dtype than the bucket's, before communicating.
        """

    def state_dict(self) -> list[ParameterState]:
        """One dict of tensors per parameter of the bucket, sharing memory with the state."""

    def load_state_dict(self, state: Sequence[ParameterState]) -> None:
        """Continue from a `state_dict()`; what a parameter's dict lacks starts anew. Not collective.

        Raises ValueError for tensors of another shape, and then changes nothing.
        """


@runtime_checkable
class SumsEach(Protocol):
    """A `BucketCompression` for which parameters need not lie one after another: no copies into a flat tensor."""

    def sum_each_(self, parts: Sequence[torch.Tensor], factor: float, name: str, collectives: Collectives) -> float:
        """What `sum_` does with the `parts` of `flat`, each (n,) contiguous, times `factor`; each in place."""


@runtime_checkable
class BucketCompressor(Protocol):
    """A kind of compression with its options: a frozen dataclass, made without arguments by default."""

    name: ClassVar[str]

    def for_bucket(
        self, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device | str
    ) -> BucketCompression:
        """A fresh state for a bucket of parameters of these `shapes`, laid out one after another in its flat tensor.

        `dtype` is the parameters'; of complex ones, `flat` holds the real and imaginary parts in turn.
        """
