"""What every family of collectives offers to the optimizer: the seam between gradients and transport."""

from typing import Any, Literal, Protocol

import torch

ReduceOp = Literal["sum", "average", "min", "max", "product", "adasum"]


class Work(Protocol):
    """A collective under way."""

    def wait(self) -> torch.Tensor:
        """Block until it is finished and return its result; raises on this rank if it failed."""


class Collectives(Protocol):
    """Collectives over a fixed group of `size` ranks, of which this process is number `index`.

    Every call is collective over the group, and every rank passes the same `name`, dtype and (unless said
    otherwise) shape.
    """

    size: int
    index: int

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        """Start reducing `tensor` (any shape, contiguous) in place over all ranks, each part times `prescale`.

        `tensor` belongs to the collective until `wait()` returns it. Moves 2(p-1)/p of its bytes per rank.
        """

    def all_gather(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """All ranks' `tensor`, concatenated along the first dimension, in which they may differ (0 included)."""

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """All ranks' `item` (picklable, small, not None), in the order of the group, on every rank.

        None stands for a rank that has left the group for good or for a while.
        """
