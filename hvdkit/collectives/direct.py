"""hvdkit's own collectives over the ranks of a group, on tensors of any shape, with the algorithm chosen for each call.

Unlike Horovod's engine they need no negotiation: every rank calls them in the same order, which each call verifies
(`meeting`). They need MPI with full thread support, and tensors on the CPU. Calls run in the calling thread, unless
`start` has put some on a thread of their own; from then on all run there, in the order in which they were made.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.checks import check_movable, check_out, check_parts, check_reducible, check_shared
from hvdkit.collectives.group import Group
from hvdkit.collectives.interface import Done, ReduceOp, Work
from hvdkit.collectives.levels import Levels
from hvdkit.collectives.meeting import Call, Meeting, Met
from hvdkit.collectives.outputs import empty_output
from hvdkit.collectives.plans import Plan, flat_of, movable_view, traits
from hvdkit.collectives.queue import Queue, Started
from hvdkit.collectives.ready import EVERYTHING, ReadyExchanges
from hvdkit.collectives.reduction import Reduction, reduction_for
from hvdkit.collectives.threads import limit_threads, restore_threads
from hvdkit.runtime.watch import Watch

_MOST_PLANS = 4096

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


_IN_WORDS = {"ready": "gradients of an optimizer"}
"""Names for the reader of the stall check, of collectives that have none."""

_SERVED = ("all_reduce", "all_reduce_many", "all_gather", "gather_objects", "ready")
"""What ranks that have called `join()` take part in."""


def _cannot_go_on(call: Call) -> ValueError:
    """What all ranks raise, the same."""
    return ValueError(f"{call.kind} cannot go on after a rank has called join()")


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
            self._end()

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
        self._is_watched = False
        self.strategy = strategy
        self.size, self.index = group.size, group.index
        self.threads = threads
        self.exchanges = ReadyExchanges(self._common_bits, meeting.explain)
        self._queue = Queue()
        self._plans: dict[tuple[Any, ...], Plan] = {}

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
            return self._call("all_reduce", tensor, strategy, op=op, is_weighted=weight is not None, name=name)

        plan = self._meet(check, ("all_reduce", *traits(tensor), op, weight is None, strategy, name))
        reduction = plan.reduction or self._weighted(plan.call, weight)
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
            algorithm = self.algorithms.resolve("all_reduce", sum(t.nbytes for t in tensors), self.strategy)
            lengths = tuple(tensor.numel() for tensor in tensors)
            return Call("all_reduce_many", algorithm, op, tensors[0].dtype, len(tensors), weight is not None,
                        name=name, shape=lengths)  # fmt: skip

        plan = self._meet(check, ("all_reduce_many", *map(traits, tensors), op, weight is None, name))
        reduction = plan.reduction or self._weighted(plan.call, weight)
        flats = [flat_of(tensor) for tensor in tensors]
        self._max_lengths(list(plan.call.shape))
        self.algorithms.all_reduce_many(plan.call.algorithm, flats, reduction)
        for tensor, flat in zip(tensors, flats, strict=True):
            if flat.data_ptr() != tensor.data_ptr():
                tensor.copy_(flat.view(tensor.shape))

    def _max_lengths(self, mine: list[int]) -> list[int]:
        """The lengths of many tensors, which a rank that brings none (zeros) has to learn. Collective."""
        lengths = np.array(mine, dtype=np.int64)
        self.group.comm.Allreduce(self.group.mpi.IN_PLACE, lengths, self.group.mpi.MAX)
        found: list[int] = lengths.tolist()
        return found

    @_in_order
    def reduce_(self, tensor: torch.Tensor, root: int, *, op: str = "sum", strategy: str | None = None,
                name: str = "") -> torch.Tensor:  # fmt: skip
        """Reduce `tensor` in place on rank `root`; the others keep theirs. Collective."""

        def check() -> Call:
            check_reducible("reduce", tensor, op)
            self._check_root("reduce", root)
            return self._call("reduce", tensor, strategy, op=op, root=root, name=name)

        plan = self._meet(check, ("reduce", *traits(tensor), op, root, strategy, name))
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
            self._check_root("broadcast", root)
            return self._call("broadcast", tensor, strategy, root=root, name=name)

        plan = self._meet(check, ("broadcast", *traits(tensor), root, strategy, name))
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
            call = self._call("all_gather", rows, strategy, name=name)
            fits = out is None or len(out) == len(rows) * self.size
            call.rows = len(rows) if fits else -1 - self.index  # differs then, so that lengths are compared
            return call

        rows = tensor if tensor.dim() else tensor.view(1)
        into = None if out is None else (*traits(out), out.is_contiguous(), out.requires_grad)
        plan, met = self._meet_all(check, ("all_gather", *traits(tensor), strategy, name, into))
        if not met.has_equal_rows or plan.method is None:
            return self._gather_rows(rows.contiguous(), plan.call.algorithm, out)
        if out is None:
            out = empty_output(plan.shape, rows.dtype)
        if out.numel():
            plan.method(movable_view(flat_of(rows)), movable_view(flat_of(out)), plan.counts)
        return out

    def _gather_rows(self, rows: torch.Tensor, strategy: str, out: torch.Tensor | None = None) -> torch.Tensor:
        lengths = self._lengths(len(rows), -1 if out is None else len(out))
        width = math.prod(rows.shape[1:]) * (2 if rows.is_complex() else 1)
        counts = [length * width for length in lengths]
        if out is None:
            out = empty_output((sum(lengths), *rows.shape[1:]), rows.dtype)
        if out.numel():
            name = self.algorithms.resolve("all_gather", max(counts) * rows.element_size(), strategy)
            gather = self.algorithms.method("all_gather", name)
            gather(movable_view(flat_of(rows)), movable_view(out.view(-1)), counts)
        return out

    def _lengths(self, mine: int, room: int) -> list[int]:
        """All ranks' lengths. Raises ValueError on all if they do not fill the `room` of one; -1 for any."""
        found = np.zeros((self.size, 2), dtype=np.int64)
        self.group.comm.Allgather(np.array([mine, room], dtype=np.int64), found)
        lengths: list[int] = found[:, 0].tolist()
        for rank, given in enumerate(found[:, 1].tolist()):
            if given not in (-1, sum(lengths)):
                raise ValueError(
                    f"all_gather: the ranks bring {sum(lengths)} rows in all, and rank {rank} gives an out= of {given}"
                )
        return lengths

    @_in_order
    def reduce_scatter(
        self, tensor: torch.Tensor, *, op: str = "sum", strategy: str | None = None, name: str = ""
    ) -> torch.Tensor:
        """Reduce `tensor`, (rows, ...), and return this rank's rows: as many on each, one more on the first ranks."""

        def check() -> Call:
            check_reducible("reduce_scatter", tensor, op)
            if not tensor.dim():
                raise ValueError("reduce_scatter: the tensor needs a first dimension to be cut along")
            return self._call("reduce_scatter", tensor, strategy, op=op, name=name)

        plan = self._meet(check, ("reduce_scatter", *traits(tensor), op, strategy, name))
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
            return self._parts_call("reduce_scatter", data, counts, op=op, is_weighted=weight is not None, name=name)

        key = ("reduce_scatter_into", *traits(data), *traits(out), *counts, op, weight is None, name)
        plan = self._meet(check, key)
        if data.numel():
            plan.method(data, out, counts, plan.reduction or self._weighted(plan.call, weight))

    @_in_order
    def all_gather_into(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int], name: str) -> None:
        """See `Collectives`."""

        def check() -> Call:
            check_parts("all_gather", out, part, counts, self.index)
            check_movable("all_gather", out)
            return self._parts_call("all_gather", out, counts, name=name)

        plan = self._meet(check, ("all_gather_into", *traits(part), *traits(out), *counts, name))
        if out.numel():
            plan.method(movable_view(part), movable_view(out), _doubled(counts) if out.is_complex() else counts)

    def _parts_call(self, collective: str, whole: torch.Tensor, counts: Sequence[int], **more: Any) -> Call:
        nbytes = whole.nbytes if collective == "reduce_scatter" else max(counts) * whole.element_size()
        algorithm = self.algorithms.resolve(collective, nbytes, self.strategy)
        return Call(
            f"{collective}_into", algorithm, dtype=whole.dtype, count=whole.numel(), shape=tuple(counts), **more
        )

    @_in_order
    def empty_shared(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in the node's shared memory, which all-reduces without copies; zeros. Collective.

        An ordinary tensor where the ranks lie on several nodes, or there is no room (with a warning).
        """

        def check() -> Call:
            check_shared(shape, dtype)
            return Call("empty_shared", dtype=dtype, count=math.prod(shape), shape=shape)

        self._meet(check, ("empty_shared", shape, dtype))
        return self.algorithms.empty_shared(shape, dtype)

    @_in_order
    def shared_by_node(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """One tensor of zeros in the node's shared memory, the same memory on all ranks. Collective.

        All ranks must lie on one node. Raises NoRoomError on all ranks where there is no room.
        """

        def check() -> Call:
            check_shared(shape, dtype)
            return Call("shared_by_node", dtype=dtype, count=math.prod(shape), shape=shape)

        self._meet(check, ("shared_by_node", shape, dtype))
        return self.algorithms.shared_by_node(shape, dtype)

    @property
    def has_levels(self) -> bool:
        """Whether `by_levels` can be called: several nodes with several ranks, no flat strategy asked for."""
        return self.strategy in ("auto", "hierarchical") and self.algorithms.levels is not None

    @_in_order
    def by_levels(self, data: torch.Tensor, name: str, work: Callable[[Levels], T]) -> T:
        """Do `work` with `data`, which makes the same calls of `Levels` on all ranks. Collective."""
        self._meet(
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
        self._meet(lambda: Call("gather_objects", name=name), ("gather_objects", name))
        gathered: list[Any] = self.group.comm.allgather(item)
        return gathered

    @_in_order
    def _common_bits(self, mine: int) -> int:
        """The bits that all ranks set. Collective."""
        self._meet(lambda: Call("ready"), ("ready",))
        return self._and(mine)

    def _and(self, mine: int) -> int:
        bits = np.array([mine], dtype=np.int64)
        self.group.comm.Allreduce(self.group.mpi.IN_PLACE, bits, self.group.mpi.BAND)
        return int(bits[0])

    @_in_order
    def serve(self) -> bool:
        """Take part in one collective of the others without anything to bring; False if nobody is in one. Collective.

        For a rank that has called `join()`: it brings zeros to reductions, as in Horovod, and no rows to all-gathers.
        """
        call = self.meeting.attend()
        if call is None:
            return False
        if call.kind == "gather_objects":
            self.group.comm.allgather(None)
        elif call.kind == "ready":
            if not self._and(EVERYTHING):
                self.meeting.explain("nothing (it has called join())")
        elif call.kind == "all_reduce":
            zeros = torch.zeros(call.count, dtype=call.dtype)
            reduction = self._weighted(call, 0.0) if call.is_weighted else self._plain(call)
            self.algorithms.method(call.kind, call.algorithm)(zeros, reduction)
        elif call.kind == "all_reduce_many":
            reduction = self._weighted(call, 0.0) if call.is_weighted else self._plain(call)
            many = [torch.zeros(length, dtype=call.dtype) for length in self._max_lengths([0] * call.count)]
            self.algorithms.all_reduce_many(call.algorithm, many, reduction)
        elif call.kind == "all_gather":
            self._gather_rows(torch.zeros(0, call.count, dtype=call.dtype), call.algorithm)
        elif call.kind != "mistake":  # of the others, who raise their errors and go on
            raise _cannot_go_on(call)
        return True

    # -- what calls have in common

    def _call(self, kind: str, tensor: torch.Tensor, strategy: str | None, *, op: str = "sum", root: int = 0,
              is_weighted: bool = False, name: str = "") -> Call:  # fmt: skip
        strategy = strategy or self.strategy
        # The algorithm of an all-gather is chosen when the lengths are known, which differ.
        algorithm = self.algorithms.resolve(kind, tensor.nbytes, strategy)
        count = tensor.numel()
        if kind == "all_gather":
            algorithm, count = strategy, math.prod(tensor.shape[1:])
        return Call(kind, algorithm, op, tensor.dtype, count, is_weighted, root, name, tuple(tensor.shape))

    def _meet(self, check: Callable[[], Call], key: tuple[Any, ...]) -> "Plan":
        return self._meet_all(check, key)[0]

    def _meet_all(self, check: Callable[[], Call], key: tuple[Any, ...]) -> tuple["Plan", Met]:
        """The call that `check` returns, when all ranks make it; where it raises, all ranks learn it and none hangs.

        `key` stands for all that `check` looks at: the same call needs to be checked and prepared only once.
        """
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = self._prepare(check())
            except (TypeError, ValueError) as error:
                self.meeting.meet(Call("mistake", name=str(error)))
                raise
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        self._begin(plan.call)
        met = self.meeting.meet(plan.call)
        if met.has_joined and plan.call.kind not in _SERVED:
            raise _cannot_go_on(plan.call)
        return plan, met

    def _prepare(self, call: Call) -> "Plan":
        collective = call.kind.removesuffix("_into")
        reduces = collective in ("all_reduce", "all_reduce_many", "reduce", "reduce_scatter")
        chosen_now = call.kind in ("all_reduce", "reduce", "reduce_scatter", "broadcast") or collective != call.kind
        algorithm, lengths = call.algorithm, [0]
        if call.kind == "reduce_scatter":
            base, extra = divmod(call.shape[0], self.size)
            lengths = [base + (rank < extra) for rank in range(self.size)]
        elif call.kind == "all_gather" and call.rows >= 0:  # for the case that all bring as many
            lengths, chosen_now = [call.rows] * self.size, True
            nbytes = call.rows * call.count * call.dtype.itemsize
            algorithm = self.algorithms.resolve("all_gather", nbytes, algorithm)
        width = math.prod(call.shape[1:]) * (2 if call.dtype.is_complex else 1)
        own = sum(lengths) if collective == "all_gather" else lengths[self.index % len(lengths)]
        return Plan(
            call,
            self.algorithms.method(collective, algorithm) if chosen_now else None,
            self._plain(call) if reduces and not call.is_weighted else None,
            (own, *call.shape[1:]),
            [length * width for length in lengths],
        )

    def _begin(self, call: Call) -> None:
        count = sum(call.shape) if call.kind == "all_reduce_many" else call.count
        nbytes = count * call.dtype.itemsize
        self.watch.begin(
            call.name or _IN_WORDS.get(call.kind, call.kind), call.kind, call.algorithm, nbytes, self.group.world_ranks
        )
        self._is_watched = True

    def _end(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self.watch.end()

    def _plain(self, call: Call) -> Reduction:
        return reduction_for(call.op, self.size, call.dtype)

    def _weighted(self, call: Call, weight: float | None) -> Reduction:
        """With the weights of all ranks, of which this one's is `weight`. Collective."""
        gathered = np.zeros(self.size, dtype=np.float64)
        self.group.comm.Allgather(np.array([weight], dtype=np.float64), gathered)
        return reduction_for(call.op, self.size, call.dtype, gathered.tolist())

    def _check_root(self, kind: str, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"{kind}: root={root} is not a rank of this group (size {self.size}); "
                             f"use 0..{self.size - 1}")  # fmt: skip

    def close(self) -> None:
        """Free what the algorithms hold. Collective."""
        self._queue.close()
        self.algorithms.close()
        self.group.close()
