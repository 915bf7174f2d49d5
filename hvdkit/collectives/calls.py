"""What all direct calls have in common: they are checked and prepared once, and begin with a meeting of the ranks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.group import Group
from hvdkit.collectives.joined import SERVED, cannot_go_on
from hvdkit.collectives.meeting import Call, Meeting, Met
from hvdkit.collectives.plans import Plan, prepare
from hvdkit.runtime.watch import Watch

_MOST_PLANS = 4096

_IN_WORDS = {"ready": "gradients of an optimizer"}
"""Names for the reader of the stall check, of collectives that have none."""


class Calls:
    """The calls that this rank makes over `group`, by `strategy` where they name none."""

    def __init__(self, group: Group, algorithms: Algorithms, meeting: Meeting, watch: Watch, strategy: str) -> None:
        self._group, self._algorithms, self._meeting, self._watch = group, algorithms, meeting, watch
        self._strategy = strategy
        self._is_watched = False
        self._plans: dict[tuple[Any, ...], Plan] = {}

    # -- what a rank is about to do

    def of_tensor(self, kind: str, tensor: torch.Tensor, strategy: str | None, *, op: str = "sum", root: int = 0,
                  is_weighted: bool = False, name: str = "") -> Call:  # fmt: skip
        """A call of `kind` with all of `tensor`."""
        strategy = strategy or self._strategy
        # The algorithm of an all-gather is chosen when the lengths are known, which differ.
        algorithm = self._algorithms.resolve(kind, tensor.nbytes, strategy)
        count = tensor.numel()
        if kind == "all_gather":
            algorithm, count = strategy, math.prod(tensor.shape[1:])
        return Call(kind, algorithm, op, tensor.dtype, count, is_weighted, root, name, tuple(tensor.shape))

    def of_many(self, tensors: Sequence[torch.Tensor], *, op: str, is_weighted: bool, name: str) -> Call:
        """An all-reduce of `tensors`, of one dtype, together."""
        algorithm = self._algorithms.resolve("all_reduce", sum(t.nbytes for t in tensors), self._strategy)
        lengths = tuple(tensor.numel() for tensor in tensors)
        return Call("all_reduce_many", algorithm, op, tensors[0].dtype, len(tensors), is_weighted,
                    name=name, shape=lengths)  # fmt: skip

    def of_parts(self, collective: str, whole: torch.Tensor, counts: Sequence[int], **more: Any) -> Call:
        """A reduce-scatter or all-gather of `whole`, (sum(counts),), of which rank j has counts[j]."""
        nbytes = whole.nbytes if collective == "reduce_scatter" else max(counts) * whole.element_size()
        algorithm = self._algorithms.resolve(collective, nbytes, self._strategy)
        return Call(
            f"{collective}_into", algorithm, dtype=whole.dtype, count=whole.numel(), shape=tuple(counts), **more
        )

    # -- its beginning and its end

    def meet(self, check: Callable[[], Call], key: tuple[Any, ...]) -> Plan:
        """The plan of the call that `check` returns, when all ranks make it. Collective, as `meet_all`."""
        return self.meet_all(check, key)[0]

    def meet_all(self, check: Callable[[], Call], key: tuple[Any, ...]) -> tuple[Plan, Met]:
        """The call that `check` returns, when all ranks make it; where it raises, all ranks learn it and none hangs.

        `key` stands for all that `check` looks at: the same call needs to be checked and prepared only once.
        """
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = prepare(check(), self._algorithms, self._group)
            except (TypeError, ValueError) as error:
                self._meeting.meet(Call("mistake", name=str(error)))
                raise
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        self._begin(plan.call)
        met = self._meeting.meet(plan.call)
        if met.has_joined and plan.call.kind not in SERVED:
            raise cannot_go_on(plan.call)
        return plan, met

    def _begin(self, call: Call) -> None:
        count = sum(call.shape) if call.kind == "all_reduce_many" else call.count
        nbytes = count * call.dtype.itemsize
        self._watch.begin(
            call.name or _IN_WORDS.get(call.kind, call.kind), call.kind, call.algorithm, nbytes, self._group.world_ranks
        )
        self._is_watched = True

    def end(self) -> None:
        """Tell the watch that the call is over, if one began."""
        if self._is_watched:
            self._is_watched = False
            self._watch.end()
