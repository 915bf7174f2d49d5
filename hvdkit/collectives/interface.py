"""The two seams: what an algorithm offers, and what the optimizer asks of a family of collectives."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch

from hvdkit.collectives.reduction import Reduction

ReduceOp = Literal["sum", "average", "min", "max", "product", "adasum"]
Collective = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce"]


class Algorithm(Protocol):
    """One way to do some of the collectives over a fixed group of ranks; an attribute for each that it offers.

    Tensors are one-dimensional, contiguous and on the CPU. Every call is collective over the group, all ranks pass the
    same dtype and lengths, calls come in the same order on all ranks, and block until this rank is done.
    """

    name: str

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """Reduce `data`, (n,), in place: the same bits on every rank."""


class OffersAll(Algorithm, Protocol):
    """The methods that an algorithm may offer besides."""

    def all_reduce_many(self, tensors: Sequence[torch.Tensor], reduction: Reduction) -> None:
        """Reduce each of `tensors`, of one dtype, in place; offered where that is quicker than one after another."""

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """Reduce `data`, (sum(counts),), which keeps its values, and give rank j the j-th part: `out`, (counts[j],)."""

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """Put rank j's `part`, (counts[j],), one after another into `out`, (sum(counts),), on every rank."""

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """Put rank `root`'s `data`, (n,), into everyone's."""

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """Reduce `data`, (n,), in place on rank `root`; the others' keeps its values."""


class Work(Protocol):
    """A collective under way."""

    def wait(self) -> torch.Tensor:
        """Block until it is finished and return its result; raises on this rank if it failed."""


class Done:
    """A collective that is finished already."""

    def __init__(self, result: torch.Tensor) -> None:
        self._result = result

    def wait(self) -> torch.Tensor:
        """See `Work`."""
        return self._result


def wait_for_all(works: Iterable[Work]) -> None:
    """Wait for all `works`, also after a failure; then raise the first."""
    failures = []
    for work in works:
        try:
            work.wait()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


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

    def reduce_scatter_into(
        self,
        data: torch.Tensor,
        out: torch.Tensor,
        counts: Sequence[int],
        name: str,
        *,
        op: ReduceOp = "sum",
        weight: float | None = None,
    ) -> None:
        """Reduce `data`, (sum(counts),) contiguous, and put this rank's part into `out`, (counts[index],).

        `out` may be that part of `data` itself; what the rest of `data` holds afterwards is not said. With `weight`,
        which may differ between ranks, the sum is sum_j weight_j x_j.
        """

    def all_gather_into(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int], name: str) -> None:
        """Put every rank's `part`, (counts[index],), into `out`, (sum(counts),) contiguous, in the order of the group.

        `part` may be this rank's place in `out`.
        """

    def start(self, work: Callable[[], torch.Tensor]) -> Work:
        """Run `work`, which may make calls, after all calls so far, on the thread for calls; returns at once."""

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """All ranks' `item` (picklable, small, not None), in the order of the group, on every rank.

        None stands for a rank that has left the group for good or for a while.
        """
