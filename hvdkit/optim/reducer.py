"""Aggregates the gradients of one optimizer over ranks, while backward still runs.

Each parameter has a hook that fires when its gradient is complete. Buckets are filled and reduced strictly in the
agreed order, each as soon as it and all before it are complete; what is left goes at the end of the outermost
backward, together with a header: one small float64 all-reduce that carries the weights, which parameters have a
gradient anywhere, and which buckets were sent too early and must be sent again. `flush()` then writes the
aggregated gradients into `.grad`. A rank on which no gradient came flushes in `step()`.
"""

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives import Collectives, ReduceOp, Work
from hvdkit.errors import HvdkitError
from hvdkit.optim.backward import at_end_of_backward
from hvdkit.optim.buckets import Bucket, plan_buckets
from hvdkit.optim.hooks import GradientHook
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.plan import Agreement, Observation, agree
from hvdkit.optim.sparse import reduce_sparse
from hvdkit.optim.weighting import FIELDS, Total, Weighting, combine


class Reducer:
    """Aggregates `parameters` (with `names`) over the ranks that `connect` returns collectives for.

    `connect` is called before each step; it returns None where there is nobody to aggregate with (Horovod not
    running, this rank outside the process set), and a new object after a restart of Horovod.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[torch.Tensor],
        options: ReducerOptions,
        connect: Callable[[], Collectives | None],
    ) -> None:
        self.options = options
        self.passes = options.passes
        self.statistics = Statistics()
        self.weighting = Weighting(fixed=1.0 if options.weight is None else options.weight)
        self.is_paused = False
        self.is_aggregated = False
        self._connect = connect
        self._collectives: Collectives | None = None
        self._names = list(names)
        self._parameters = list(parameters)
        self._hooked: list[bool] = []
        self._released: set[int] = set()
        self._hooks: dict[int, GradientHook] = {}
        self._agreed: Agreement | None = None
        self._unit = self._inverse = self._last_factor = 1.0
        self._written: list[weakref.ref[torch.Tensor]] = []
        self._watch()
        self.restart()

    # -- the life of a step

    def restart(self) -> None:
        """Begin the next step: forget what this one accumulated. Not collective."""
        self._is_backward_running = False
        self._passes_done = 0
        self.is_aggregated = False
        self.weighting.restart()
        self._restart_backward()

    def _restart_backward(self) -> None:
        self._fires = [0] * len(self._parameters)
        self._order: list[int] = []
        self._works: list[tuple[Work, Any]] = []
        self._resend: set[int] = set()
        self._missing = [len(bucket.indices) for bucket in self._buckets] if self._agreed else []

    def on_gradient(self, index: int) -> None:
        """A gradient of parameter `index` was accumulated into `.grad` by the backward that is running."""
        if self.is_paused:
            return
        if not self._is_backward_running:
            self._begin_backward()
        self._fires[index] += 1
        if self._fires[index] == 1:
            self._order.append(index)
        if self._agreed is None or self._passes_done + 1 < self.passes:
            return
        number = self._bucket_of.get(index)
        if number is None:
            return
        if number < len(self._works):
            self._resend.add(number)
        elif self._fires[index] == self._agreed.expected_fires[index]:
            self._missing[number] -= 1
            while len(self._works) < len(self._buckets) and not self._missing[len(self._works)]:
                self._send_next()

    def _begin_backward(self) -> None:
        self._is_backward_running = True
        if self.is_aggregated:
            self._check_second_backward()
            self.is_aggregated = False
        self._refresh()
        self._restart_backward()
        if not self.weighting.is_counting:
            self.weighting.ran_uncounted_backward = True
        at_end_of_backward(self._end_backward)

    def _end_backward(self) -> None:
        if not self._is_backward_running:  # already flushed by synchronize() or step()
            return
        self._is_backward_running = False
        self._passes_done += 1
        if self._passes_done >= self.passes:
            self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Aggregate all gradients and write them into `.grad`. Collective."""
        self._is_backward_running = False
        self._refresh()
        if self._collectives is None:
            return
        started = time.perf_counter()
        try:
            if self._collectives.size == 1:
                self._scale_alone()
            else:
                self._aggregate(self._collectives)
        finally:
            self._restart_backward()
        self._passes_done = 0
        self.weighting.restart()
        self.is_aggregated = True
        self.statistics.rounds += 1
        self.statistics.exposed_seconds += time.perf_counter() - started

    def average_loss(self, loss: torch.Tensor | float) -> torch.Tensor | float:
        """The ranks' losses combined as their gradients were in the last `flush()`; same bits everywhere."""
        if self._collectives is None:
            return loss
        value = float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss)
        mine = value * self._last_factor if self._last_factor else 0.0
        parts = self._collectives.all_gather(torch.tensor([mine], dtype=torch.float64), "hvdkit.optimizer.loss")
        combined = float(parts.sum()) * self._inverse
        return torch.full_like(loss, combined) if isinstance(loss, torch.Tensor) else combined

    # -- aggregation

    def _aggregate(self, collectives: Collectives) -> None:
        agreed = self._agreed or self._agree(collectives)
        silent = self.weighting.is_silent
        present = [p.grad is not None and not silent for p in self._parameters]
        sparse = [p.grad is not None and p.grad.is_sparse for p in self._parameters]
        resend = [number in self._resend for number in range(len(self._buckets))]
        header = torch.tensor([*self.weighting.encode(), *present, *sparse, *resend], dtype=torch.float64)
        header_work = collectives.all_reduce_async_(header, f"{agreed.key}.header")
        while len(self._works) < len(self._buckets):
            self._send_next()
        fields, used, sparse_on, resend_on = (
            header_work.wait().split([FIELDS, len(present), len(sparse), len(resend)])
        )  # fmt: skip
        results = [(work.wait(), context) for work, context in self._works]
        self._works = []
        for number in torch.nonzero(resend_on).flatten().tolist():
            work, context = self._send(number, f"{agreed.key}.{number}.again")
            results[number] = (work.wait(), context)
        total = combine(fields, agreed.fixed_total)
        self._divide_by(total)
        scale = self._inverse * self._unit * self.options.predivide
        is_used, is_sparse = [[count > 0 for count in part.tolist()] for part in (used, sparse_on)]
        self._written = []
        for bucket, (result, context) in zip(self._buckets, results, strict=True):
            self._write_back(bucket, self.options.compression.decompress(result, context), scale, is_used, is_sparse)
        for index in self._sparse_indices:
            self._write_back_sparse(collectives, agreed, index, is_used[index], silent)
        self.weighting.unit = total.unit or self.weighting.unit
        self._unit = total.unit or 1.0
        self._learn_sparse(agreed, is_sparse)

    def _agree(self, collectives: Collectives) -> Agreement:
        seen = Observation(
            order=self._order,
            fires=self._fires,
            sparse=[p.grad is not None and p.grad.is_sparse and not self.options.sparse_as_dense
                    for p in self._parameters],
        )  # fmt: skip
        agreed = agree(collectives, self._names, self._parameters, self._active(), seen, self.weighting)
        self._sparse_indices = [index for index in sorted(agreed.order) if agreed.sparse[index]]
        is_elementwise = getattr(self.options.compression, "is_elementwise", False)
        self._buckets = plan_buckets(
            self._parameters,
            [index for index in agreed.order if not agreed.sparse[index]],
            # A compressor of the user's own may depend on a parameter's shape: give it one parameter at a time.
            bucket_bytes=self.options.bucket_bytes if is_elementwise else 0,
            groups=self.options.groups if is_elementwise else None,
        )
        self._bucket_of = {i: number for number, bucket in enumerate(self._buckets) for i in bucket.indices}
        self._unit = agreed.unit
        self._agreed = agreed
        return agreed

    def _send_next(self) -> None:
        assert self._agreed is not None
        number = len(self._works)
        self._works.append(self._send(number, f"{self._agreed.key}.{number}"))

    @torch.no_grad()
    def _send(self, number: int, name: str) -> tuple[Work, Any]:
        assert self._collectives is not None
        bucket = self._buckets[number]
        if self.weighting.is_silent:
            bucket.flat.zero_()
        else:
            bucket.fill([self._parameters[index].grad for index in bucket.indices], self.weighting.factor / self._unit)
        whole = bucket.views[0] if len(bucket.views) == 1 and not bucket.dtype.is_complex else bucket.flat
        tensor, context = self.options.compression.compress(whole)
        work = self._collectives.all_reduce_async_(
            tensor,
            name,
            op=self._wire_op,
            prescale=1 / self.options.predivide,
        )
        ranks = self._collectives.size
        self.statistics.bytes_sent += 2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size()
        return work, context

    def _write_back(
        self, bucket: Bucket, result: torch.Tensor, scale: float, is_used: list[bool], is_sparse: list[bool]
    ) -> None:
        if result.data_ptr() != bucket.flat.data_ptr():
            bucket.flat.copy_(result.view(-1))
        for index, view in zip(bucket.indices, bucket.views, strict=True):
            parameter = self._parameters[index]
            if not is_used[index]:
                parameter.grad = None
                continue
            if is_sparse[index]:
                parameter.grad = (view * scale).to_sparse(1)
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            torch.mul(view, scale, out=parameter.grad)
            self._written.append(weakref.ref(parameter.grad))

    def _write_back_sparse(
        self, collectives: Collectives, agreed: Agreement, index: int, is_used: bool, silent: bool
    ) -> None:
        parameter = self._parameters[index]
        if not is_used:
            parameter.grad = None
            return
        mine = None if silent or parameter.grad is None else parameter.grad * self.weighting.factor
        name = f"{agreed.key}.sparse.{index}"
        parameter.grad = reduce_sparse(collectives, mine, parameter, name, self._inverse)

    def _learn_sparse(self, agreed: Agreement, sparse_on: list[bool]) -> None:
        """A gradient that turned out sparse after the plan was made gets a place behind the buckets next time."""
        if not self.options.sparse_as_dense and any(
            now and not planned for now, planned in zip(sparse_on, agreed.sparse, strict=True)
        ):
            self._agreed = None

    @property
    def _wire_op(self) -> ReduceOp:
        return "sum" if self.options.op == "average" else self.options.op

    def _divide_by(self, total: Total) -> None:
        self._inverse = 1 / total.divisor if self.options.op == "average" else 1.0
        self._last_factor = 0.0 if self.weighting.is_silent else self.weighting.factor

    def _scale_alone(self) -> None:
        fields = torch.tensor(self.weighting.encode(), dtype=torch.float64)
        self._divide_by(combine(fields, self.weighting.fixed))
        factor = self._last_factor * self._inverse
        if factor == 1.0:
            return
        for parameter, active in zip(self._parameters, self._hooked, strict=True):
            if parameter.grad is not None and active:
                parameter.grad = parameter.grad.mul_(factor) if factor else torch.zeros_like(parameter)

    def _check_second_backward(self) -> None:
        """Averages of averages add up right; other combinations of two aggregated passes would not."""
        if self.options.op == "average" and not self.weighting.is_counting:
            return
        alive = {id(reference()) for reference in self._written}
        if any(p.grad is not None and id(p.grad) in alive for p in self._parameters):
            self._is_backward_running = False
            raise HvdkitError(
                "backward() ran again on gradients that are already aggregated, which has no meaning with "
                f"op={self.options.op!r} or weigh(): call step() or zero_grad() first, or accumulate with "
                "no_sync() or backward_passes_per_step"
            )

    # -- which parameters, over which ranks

    def _refresh(self) -> None:
        collectives = self._connect()
        if collectives is not self._collectives:
            self._collectives = collectives
            self._agreed = None
            self._works = []
        if self._hooked != self._active():
            self._watch()

    def _active(self) -> list[bool]:
        return [p.requires_grad and index not in self._released for index, p in enumerate(self._parameters)]

    def _watch(self) -> None:
        """Hook every parameter that needs a gradient, taking it over from an optimizer wrapped earlier."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {
            index: GradientHook(self, index, parameter)
            for index, parameter in enumerate(self._parameters)
            if self._active()[index]
        }
        self._hooked = self._active()
        self._agreed = None

    def set_parameters(self, names: Sequence[str], parameters: Sequence[torch.Tensor]) -> None:
        """Aggregate these parameters from now on."""
        self._names, self._parameters, self._released = list(names), list(parameters), set()
        self._watch()
        self.restart()

    def release(self, index: int) -> None:
        """Another reducer takes over parameter `index`."""
        self._released.add(index)
        self._hooks.pop(index).remove()

    def close(self) -> None:
        """Remove every hook; gradients stay local from now on."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}
