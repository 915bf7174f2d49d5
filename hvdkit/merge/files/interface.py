"""What a file of tensors offers to a merge."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch


@dataclass(frozen=True)
class Info:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read_as: torch.dtype | None = None
    """What `read` gives, where it is another than `dtype`."""

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize


class TensorFile(Protocol):
    """Named tensors that are read a piece at a time; nothing is kept in memory."""

    @property
    def infos(self) -> Mapping[str, Info]:
        """All of them, in the file's order."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, (stop - start,), valid until the next call.

        Raises MergeError naming file and tensor where they cannot be read.
        """

    def close(self) -> None:
        """Let go of the file."""
