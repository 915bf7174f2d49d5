"""hvdkit's own collectives over the ranks of a group, on tensors of any shape, with the algorithm chosen for each call.

Unlike Horovod's engine they need no negotiation and no thread: every rank calls them in the same order, which each
call verifies (`meeting`). They need MPI with full thread support, and tensors on the CPU.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.group import Group
from hvdkit.collectives.interface import Done, ReduceOp, Work
from hvdkit.collectives.meeting import Call, Meeting
from hvdkit.collectives.reduction import MOVABLE, REDUCIBLE, Reduction, reduction_for


class DirectCollectives:
    """Collectives over `group`. `strategy` is what calls use that name none: an algorithm or "auto"."""

    def __init__(self, group: Group, algorithms: Algorithms, meeting: Meeting, strategy: str = "auto") -> None:
        self.group, self.algorithms, self.meeting = group, algorithms, meeting
        self.strategy = strategy
        self.size, self.index = group.size, group.index
        self._lock = threading.RLock()

    # -- for users, by way of `strategy=`

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
            _check_reducible("all_reduce", tensor, op)
            if weight is not None:
                reduction_for(op, 1, tensor.dtype, [weight or 1.0])  # raises for what does not go with weights
            return self._call("all_reduce", tensor, strategy, op=op, is_weighted=weight is not None, name=name)

        with self._lock:
            call = self._meet(check)
            reduction = self._reduction(call, weight)
            flat = tensor.contiguous().view(-1)
            self.algorithms.method(call.kind, call.algorithm)(flat, reduction)
            if flat.data_ptr() != tensor.data_ptr():
                tensor.copy_(flat.view(tensor.shape))
        return tensor

    def reduce_(self, tensor: torch.Tensor, root: int, *, op: str = "sum", strategy: str | None = None,
                name: str = "") -> torch.Tensor:  # fmt: skip
        """Reduce `tensor` in place on rank `root`; the others keep theirs. Collective."""

        def check() -> Call:
            _check_reducible("reduce", tensor, op)
            self._check_root("reduce", root)
            return self._call("reduce", tensor, strategy, op=op, root=root, name=name)

        with self._lock:
            call = self._meet(check)
            flat = tensor.contiguous().view(-1)
            self.algorithms.method(call.kind, call.algorithm)(flat, root, self._reduction(call, None))
            if self.index == root and flat.data_ptr() != tensor.data_ptr():
                tensor.copy_(flat.view(tensor.shape))
        return tensor

    def broadcast_(
        self, tensor: torch.Tensor, root: int, *, strategy: str | None = None, name: str = ""
    ) -> torch.Tensor:
        """Put rank `root`'s `tensor` (any shape) into everyone's; returns it. Collective."""

        def check() -> Call:
            _check_movable("broadcast", tensor)
            self._check_root("broadcast", root)
            return self._call("broadcast", tensor, strategy, root=root, name=name)

        with self._lock:
            call = self._meet(check)
            flat = tensor.contiguous().view(-1)
            self.algorithms.method(call.kind, call.algorithm)(_movable_view(flat), root)
            if flat.data_ptr() != tensor.data_ptr():
                tensor.copy_(flat.view(tensor.shape))
        return tensor

    def all_gather(
        self, tensor: torch.Tensor, name: str = "", *, strategy: str | None = None
    ) -> torch.Tensor:  # fmt: skip
        """All ranks' `tensor` along the first dimension, in which they may differ (0 included). Collective."""

        def check() -> Call:
            _check_movable("all_gather", tensor)
            return self._call("all_gather", tensor if tensor.dim() else tensor.view(1), strategy, name=name)

        with self._lock:
            call = self._meet(check)
            rows = tensor if tensor.dim() else tensor.view(1)
            return self._gather_rows(rows.contiguous(), call.algorithm)

    def _gather_rows(self, rows: torch.Tensor, strategy: str) -> torch.Tensor:
        lengths = self._lengths(len(rows))
        width = int(np.prod(rows.shape[1:], dtype=np.int64))
        counts = [length * width for length in lengths]
        out = rows.new_empty((sum(lengths), *rows.shape[1:]))
        if out.numel():
            name = self.algorithms.resolve("all_gather", max(counts) * rows.element_size(), strategy)
            gather = self.algorithms.method("all_gather", name)
            gather(_movable_view(rows.view(-1)), _movable_view(out.view(-1)), counts)
        return out

    def _lengths(self, mine: int) -> list[int]:
        lengths = np.zeros(self.size, dtype=np.int64)
        self.group.comm.Allgather(np.array([mine], dtype=np.int64), lengths)
        found: list[int] = lengths.tolist()
        return found

    def reduce_scatter(
        self, tensor: torch.Tensor, *, op: str = "sum", strategy: str | None = None, name: str = ""
    ) -> torch.Tensor:
        """Reduce `tensor`, (rows, ...), and return this rank's rows: as many on each, the first one more."""

        def check() -> Call:
            _check_reducible("reduce_scatter", tensor, op)
            if not tensor.dim():
                raise ValueError("reduce_scatter: the tensor needs a first dimension to be cut along")
            return self._call("reduce_scatter", tensor, strategy, op=op, name=name)

        with self._lock:
            call = self._meet(check)
            base, extra = divmod(len(tensor), self.size)
            rows = [base + (rank < extra) for rank in range(self.size)]
            width = int(np.prod(tensor.shape[1:], dtype=np.int64))
            out = tensor.new_empty((rows[self.index], *tensor.shape[1:]))
            if tensor.numel():
                flat = tensor.contiguous().view(-1)
                self.algorithms.method(call.kind, call.algorithm)(
                    flat, out.view(-1), [count * width for count in rows], self._reduction(call, None)
                )
        return out

    # -- Collectives

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        """See `Collectives`. Blocks."""
        if prescale != 1.0:
            tensor.mul_(prescale)
        return Done(self.all_reduce_(tensor, op=op, name=name))

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """See `Collectives`."""
        with self._lock:
            self.meeting.meet(Call("gather_objects", name=name))
            gathered: list[Any] = self.group.comm.allgather(item)
            return gathered

    def serve(self) -> bool:
        """Take part in one collective of the others without anything to bring; False if nobody is in one. Collective.

        For a rank that has called `join()`: it brings zeros to reductions, as in Horovod, and no rows to all-gathers.
        """
        with self._lock:
            call = self.meeting.attend()
            if call is None:
                return False
            if call.kind == "gather_objects":
                self.group.comm.allgather(None)
            elif call.kind == "all_reduce":
                zeros = torch.zeros(call.count, dtype=call.dtype)
                self.algorithms.method(call.kind, call.algorithm)(
                    zeros, self._reduction(call, 0.0 if call.is_weighted else None)
                )
            elif call.kind == "all_gather":
                self._gather_rows(torch.zeros(0, call.count, dtype=call.dtype), call.algorithm)
            else:
                raise ValueError(f"{call.kind} cannot go on after a rank has called join()")
            return True

    # -- what calls have in common

    def _call(self, kind: str, tensor: torch.Tensor, strategy: str | None, *, op: str = "sum", root: int = 0,
              is_weighted: bool = False, name: str = "") -> Call:  # fmt: skip
        strategy = strategy or self.strategy
        # The algorithm of an all-gather is chosen when the lengths are known, which differ.
        algorithm = self.algorithms.resolve(kind, tensor.nbytes, strategy)
        count = tensor.numel()
        if kind == "all_gather":
            algorithm, count = strategy, int(np.prod(tensor.shape[1:], dtype=np.int64))
        return Call(kind, algorithm, op, tensor.dtype, count, is_weighted, root, name, tuple(tensor.shape))

    def _meet(self, check: Callable[[], Call]) -> Call:
        """The call that `check` returns, when all ranks make it; where it raises, all ranks learn it and none hangs."""
        try:
            call = check()
        except (TypeError, ValueError) as error:
            self.meeting.meet(Call("mistake", name=str(error)))
            raise
        self.meeting.meet(call)
        return call

    def _reduction(self, call: Call, weight: float | None) -> Reduction:
        weights: list[float] | None = None
        if call.is_weighted:
            gathered = np.zeros(self.size, dtype=np.float64)
            self.group.comm.Allgather(np.array([weight], dtype=np.float64), gathered)
            weights = gathered.tolist()
        return reduction_for(call.op, self.size, call.dtype, weights)

    def _check_root(self, kind: str, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"{kind}: root={root} is not a rank of this group (size {self.size}); "
                             f"use 0..{self.size - 1}")  # fmt: skip

    def close(self) -> None:
        """Free what the algorithms hold. Collective."""
        self.algorithms.close()
        self.group.close()


def _check_reducible(kind: str, tensor: torch.Tensor, op: str) -> None:
    _check_device(kind, tensor)
    if tensor.dtype not in REDUCIBLE:
        raise TypeError(f"{kind}: {tensor.dtype} cannot be reduced; use one of {_names(REDUCIBLE)}")
    reduction_for(op, 1, tensor.dtype)


def _check_movable(kind: str, tensor: torch.Tensor) -> None:
    _check_device(kind, tensor)
    if tensor.dtype not in MOVABLE:
        raise TypeError(f"{kind}: {tensor.dtype} cannot be sent; use one of {_names(MOVABLE)}")


def _check_device(kind: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(
            f"{kind}: hvdkit's own algorithms take dense tensors on the CPU, not {tensor.layout} on {tensor.device}; "
            'use strategy="horovod"'
        )


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _movable_view(flat: torch.Tensor) -> torch.Tensor:
    """Values of dtypes that are only moved, as numbers of a dtype that every algorithm knows."""
    if flat.dtype == torch.bool:
        return flat.view(torch.uint8)
    return torch.view_as_real(flat).view(-1) if flat.dtype.is_complex else flat
