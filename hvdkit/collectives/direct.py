"""hvdkit's own collectives over the ranks of a group, on tensors of any shape, with the algorithm chosen for each call.

Unlike Horovod's engine they need no negotiation: every rank calls them in the same order, which each call verifies
(`meeting`). They need MPI with full thread support, and tensors on the CPU. Calls run in the calling thread, unless
`start` has put some on a thread of their own; from then on all run there, in the order in which they were made. Every
call is checked and prepared once (`calls`); a rank that has called `join()` serves the others (`joined`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.calls import Calls
from hvdkit.collectives.checks import (
    check_movable,
    check_out,
    check_parts,
    check_reducible,
    check_root,
    check_shared,
)
from hvdkit.collectives.group import Group
from hvdkit.collectives.interface import Done, ReduceOp, Work
from hvdkit.collectives.joined import serve
from hvdkit.collectives.levels import Levels
from hvdkit.collectives.meeting import Call, Meeting
from hvdkit.collectives.outputs import empty_output
from hvdkit.collectives.plans import flat_of, movable_view, traits
from hvdkit.collectives.queue import Queue, Started
from hvdkit.collectives.ready import ReadyExchanges
from hvdkit.collectives.reduction import reduction_for
from hvdkit.collectives.rows import gather_rows
from hvdkit.collectives.side_exchanges import common_bits, greatest_lengths, weighted
from hvdkit.collectives.threads import limit_threads, restore_threads
from hvdkit.runtime.watch import Watch

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _doubled(counts: Sequence[int]) -> list[int]:
    """Of complex numbers, counted as real ones."""
    return [2 * count for count in counts]


def _in_order(method: F) -> F:
    """`method`, run after all calls that were made before it."""

    @functools.wraps(method)
    def call(self: "DirectCollectives", *args: Any, **kwargs: Any) -> Any:
        if self._queue.is_elsewhere:
            return self._queue.start(lambda: call(self, *args, **kwargs)).result()
        asked = limit_threads(self.threads)
        try:
            return method(self, *args, **kwargs)
        finally:
            restore_threads(asked)
            self._calls.end()

    return cast(F, call)


class DirectCollectives:
    """Collectives over `group`.

    `strategy` is what calls use that name none: an algorithm or "auto"; `threads` what torch may use in a call: this
    rank's share of the cores.
    """

    def __init__(
        self,
        group: Group,
        algorithms: Algorithms,
        meeting: Meeting,
        watch: Watch,
        *,
        strategy: str = "auto",
        threads: int = 1,
    ) -> None:
        self.group, self.algorithms, self.meeting, self.watch = group, algorithms, meeting, watch
        self.strategy = strategy
        self.size, self.index = group.size, group.index
        self.threads = threads
        self.exchanges = ReadyExchanges(self._common_bits, meeting.explain)
        self._queue = Queue()
        self._calls = Calls(group, algorithms, meeting, watch, strategy)

    def with_strategy(self, strategy: str) -> "DirectCollectives":
        """The same, with another strategy for calls that name none."""
        other = DirectCollectives(
            self.group, self.algorithms, self.meeting, self.watch, strategy=strategy, threads=self.threads
        )
        other.exchanges, other._queue = self.exchanges, self._queue
        return other

    def start(self, work: Callable[[], torch.Tensor]) -> Work:
        """Run `work`, which may make calls, after all calls so far on the thread for calls; returns at once."""
        return Started(self._queue.start(work))

    # -- for users, by way of `strategy=`

    @_in_order
    def all_reduce_(
        self,
        tensor: torch.Tensor,
        *,
        op: str = "sum",
        weight: float | None = None,
        strategy: str | None = None,
        name: str = "",
    ) -> torch.Tensor:
        """Reduce `tensor` (any shape) in place over all ranks; returns it. Collective.

        `weight` is this rank's: the average is then sum_j w_j x_j / sum_j w_j, the sum sum_j w_j x_j.
        """

        def check() -> Call:
            check_reducible("all_reduce", tensor, op)
            if weight is not None:
                reduction_for(op, 1, tensor.dtype, [1.0])  # raises for what does not go with weights
            return self._calls.of_tensor(
                "all_reduce", tensor, strategy, op=op, is_weighted=weight is not None, name=name
            )

        plan = self._calls.meet(check, ("all_reduce", *traits(tensor), op, weight is None, strategy, name))
        reduction = plan.reduction or weighted(self.group, plan.call, weight)
        flat = flat_of(tensor)
        plan.method(flat, reduction)
        if flat is not tensor and flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))
        return tensor

    @_in_order
    def all_reduce_many_(
        self, tensors: Sequence[torch.Tensor], *, op: str = "sum", weight: float | None = None, name: str = ""
    ) -> None:
        """Reduce each of `tensors`, of one dtype, in place, as one call of all their bytes. Collective."""
        if len(tensors) == 1:
            self.all_reduce_(tensors[0], op=op, weight=weight, name=name)
            return

        def check() -> Call:
            for tensor in tensors:
                check_reducible("all_reduce", tensor, op)
            return self._calls.of_many(tensors, op=op, is_weighted=weight is not None, name=name)

        plan = self._calls.meet(check, ("all_reduce_many", *map(traits, tensors), op, weight is None, name))
        reduction = plan.reduction or weighted(self.group, plan.call, weight)
        flats = [flat_of(tensor) for tensor in tensors]
        greatest_lengths(self.group, list(plan.call.shape))
        self.algorithms.all_reduce_many(plan.call.algorithm, flats, reduction)
        for tensor, flat in zip(tensors, flats, strict=True):
            if flat.data_ptr() != tensor.data_ptr():
                tensor.copy_(flat.view(tensor.shape))

    @_in_order
    def reduce_(self, tensor: torch.Tensor, root: int, *, op: str = "sum", strategy: str | None = None,
                name: str = "") -> torch.Tensor:  # fmt: skip
        """Reduce `tensor` in place on rank `root`; the others keep theirs. Collective."""

        def check() -> Call:
            check_reducible("reduce", tensor, op)
            check_root("reduce", root, self.size)
            return self._calls.of_tensor("reduce", tensor, strategy, op=op, root=root, name=name)

        plan = self._calls.meet(check, ("reduce", *traits(tensor), op, root, strategy, name))
        flat = flat_of(tensor)
        plan.method(flat, root, plan.reduction)
        if self.index == root and flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))
        return tensor

    @_in_order
    def broadcast_(
        self, tensor: torch.Tensor, root: int, *, strategy: str | None = None, name: str = ""
    ) -> torch.Tensor:
        """Put rank `root`'s `tensor` (any shape) into everyone's; returns it. Collective."""

        def check() -> Call:
            check_movable("broadcast", tensor)
            check_root("broadcast", root, self.size)
            return self._calls.of_tensor("broadcast", tensor, strategy, root=root, name=name)

        plan = self._calls.meet(check, ("broadcast", *traits(tensor), root, strategy, name))
        flat = flat_of(tensor)
        plan.method(movable_view(flat), root)
        if flat is not tensor and flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))
        return tensor

    @_in_order
    def all_gather(
        self, tensor: torch.Tensor, name: str = "", *, strategy: str | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """All ranks' `tensor` along the first dimension, in which they may differ (0 included). Collective.

        In `out` where it is given, (rows of all ranks, ...). Raises ValueError on all ranks if one has another size.
        """

        def check() -> Call:
            check_movable("all_gather", tensor)
            if out is not None:
                check_out("all_gather", tensor, out)
            call = self._calls.of_tensor("all_gather", rows, strategy, name=name)
            fits = out is None or len(out) == len(rows) * self.size
            call.rows = len(rows) if fits else -1 - self.index  # differs then, so that lengths are compared
            return call

        rows = tensor if tensor.dim() else tensor.view(1)
        into = None if out is None else (*traits(out), out.is_contiguous(), out.requires_grad)
        plan, met = self._calls.meet_all(check, ("all_gather", *traits(tensor), strategy, name, into))
        if not met.has_equal_rows or plan.method is None:
            return gather_rows(self.group, self.algorithms, rows.contiguous(), plan.call.algorithm, out)
        if out is None:
            out = empty_output(plan.shape, rows.dtype)
        if out.numel():
            plan.method(movable_view(flat_of(rows)), movable_view(flat_of(out)), plan.counts)
        return out

    @_in_order
    def reduce_scatter(
        self, tensor: torch.Tensor, *, op: str = "sum", strategy: str | None = None, name: str = ""
    ) -> torch.Tensor:
        """Reduce `tensor`, (rows, ...), and return this rank's rows: as many on each, one more on the first ranks."""

        def check() -> Call:
            check_reducible("reduce_scatter", tensor, op)
            if not tensor.dim():
                raise ValueError("reduce_scatter: the tensor needs a first dimension to be cut along")
            return self._calls.of_tensor("reduce_scatter", tensor, strategy, op=op, name=name)

        plan = self._calls.meet(check, ("reduce_scatter", *traits(tensor), op, strategy, name))
        out = empty_output(plan.shape, tensor.dtype)
        if tensor.numel():
            plan.method(flat_of(tensor), out.view(-1), plan.counts, plan.reduction)
        return out

    @_in_order
    def reduce_scatter_into(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], name: str, *, op: ReduceOp = "sum",
        weight: float | None = None,
    ) -> None:  # fmt: skip
        """See `Collectives`."""

        def check() -> Call:
            check_parts("reduce_scatter", data, out, counts, self.index)
            check_reducible("reduce_scatter", data, op)
            return self._calls.of_parts(
                "reduce_scatter", data, counts, op=op, is_weighted=weight is not None, name=name
            )

        key = ("reduce_scatter_into", *traits(data), *traits(out), *counts, op, weight is None, name)
        plan = self._calls.meet(check, key)
        if data.numel():
            plan.method(data, out, counts, plan.reduction or weighted(self.group, plan.call, weight))

    @_in_order
    def all_gather_into(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int], name: str) -> None:
        """See `Collectives`."""

        def check() -> Call:
            check_parts("all_gather", out, part, counts, self.index)
            check_movable("all_gather", out)
            return self._calls.of_parts("all_gather", out, counts, name=name)

        plan = self._calls.meet(check, ("all_gather_into", *traits(part), *traits(out), *counts, name))
        if out.numel():
            plan.method(movable_view(part), movable_view(out), _doubled(counts) if out.is_complex() else counts)

    @_in_order
    def empty_shared(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in the node's shared memory, which all-reduces without copies; zeros. Collective.

        An ordinary tensor where the ranks lie on several nodes, or there is no room (with a warning).
        """

        def check() -> Call:
            check_shared(shape, dtype)
            return Call("empty_shared", dtype=dtype, count=math.prod(shape), shape=shape)

        self._calls.meet(check, ("empty_shared", shape, dtype))
        return self.algorithms.empty_shared(shape, dtype)

    @_in_order
    def shared_by_node(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """One tensor of zeros in the node's shared memory, the same memory on all ranks. Collective.

        All ranks must lie on one node. Raises NoRoomError on all ranks where there is no room.
        """

        def check() -> Call:
            check_shared(shape, dtype)
            return Call("shared_by_node", dtype=dtype, count=math.prod(shape), shape=shape)

        self._calls.meet(check, ("shared_by_node", shape, dtype))
        return self.algorithms.shared_by_node(shape, dtype)

    @property
    def has_levels(self) -> bool:
        """Whether `by_levels` can be called: several nodes with several ranks, no flat strategy asked for."""
        return self.strategy in ("auto", "hierarchical") and self.algorithms.levels is not None

    @_in_order
    def by_levels(self, data: torch.Tensor, name: str, work: Callable[[Levels], T]) -> T:
        """Do `work` with `data`, which makes the same calls of `Levels` on all ranks. Collective."""
        self._calls.meet(
            lambda: Call("by_levels", "hierarchical", dtype=data.dtype, count=data.numel(), name=name),
            ("by_levels", *traits(data), name),
        )
        levels = self.algorithms.levels
        assert levels is not None, "has_levels says so"
        return work(levels)

    # -- Collectives

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        """See `Collectives`. Blocks."""
        if prescale != 1.0:
            tensor.mul_(prescale)
        return Done(self.all_reduce_(tensor, op=op, name=name))

    @_in_order
    def refuse(self, error: Exception) -> NoReturn:
        """Raise `error`, a mistake in what this rank was asked, such that the others do not wait for it. Collective."""
        self.meeting.meet(Call("mistake", name=str(error)))
        raise error

    @_in_order
    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """See `Collectives`."""
        self._calls.meet(lambda: Call("gather_objects", name=name), ("gather_objects", name))
        gathered: list[Any] = self.group.comm.allgather(item)
        return gathered

    @_in_order
    def _common_bits(self, mine: int) -> int:
        """The bits that all ranks set. Collective."""
        self._calls.meet(lambda: Call("ready"), ("ready",))
        return common_bits(self.group, mine)

    @_in_order
    def serve(self) -> bool:
        """Take part in one collective of the others without anything to bring; False if nobody is in one. Collective.

        For a rank that has called `join()`: it brings zeros to reductions, as in Horovod, and no rows to all-gathers.
        """
        return serve(self.group, self.algorithms, self.meeting)

    def close(self) -> None:
        """Free what the algorithms hold. Collective."""
        self._queue.close()
        self.algorithms.close()
        self.group.close()
