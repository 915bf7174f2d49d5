"""hvdkit's own collectives with what Horovod's have around them: factors, new results, and gradients.

The gradients are Horovod's: those of an all-reduce are reduced in the same way; those of an all-gather or a broadcast
are averaged and go to the rank that brought the rows; those of a reduce-scatter are gathered, and those of its sum
counted once for each rank. Several tensors are one collective after another.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hvdkit.collectives.direct import DirectCollectives
from hvdkit.collectives.reduction import wide_dtype

Tensors = list[torch.Tensor]


class How(NamedTuple):
    """How tensors are to be moved or reduced."""

    direct: DirectCollectives
    strategy: str
    name: str = ""
    op: str = "sum"
    prescale: float = 1.0
    postscale: float = 1.0
    weight: float | None = None
    root: int = 0
    out: torch.Tensor | None = None
    """Of an all-gather: where its result goes."""

    @property
    def is_scaled(self) -> bool:
        """Whether there are factors besides the reduction's own."""
        return self.prescale != 1.0 or self.postscale != 1.0

    def is_plain(self, tensors: Tensors) -> bool:
        """Whether it is one tensor, without factors and gradients: the short way, for short messages."""
        return len(tensors) == 1 and not tensors[0].requires_grad and not self.is_scaled

    def label(self, number: int, count: int) -> str:
        """What tells the collective of tensor `number` from others, with all that ranks must agree on beside it."""
        place = f"[{number} of {count}]" if count > 1 else ""
        factors = f" times {self.prescale} before and {self.postscale} after" if self.is_scaled else ""
        return f"{self.name}{place}{factors}"

    def of_gradients(self, **changes: Any) -> "How":
        """The same for the gradients."""
        return self._replace(name=f"gradient of {self.name}" if self.name else "gradient", **changes)


def all_reduce(how: How, tensors: Tensors) -> Tensors:
    """Reduce each of `tensors`, which keep their values. Collective; differentiable."""
    direct = how.direct

    def run(tensor: torch.Tensor, label: str) -> torch.Tensor:
        return _scaled(how, tensor, lambda work, op: direct.all_reduce_(
            _own(work, tensor), op=op, weight=how.weight, strategy=how.strategy, name=label))  # fmt: skip

    def undo(gradients: Tensors) -> Tensors:
        if how.weight is None:
            return all_reduce(how.of_gradients(), gradients)
        share = how.weight / (_total_weight(how) if how.op == "average" else 1.0)
        summed = all_reduce(how.of_gradients(op="sum", weight=None), gradients)
        return [gradient * share for gradient in summed]

    return _differentiable(how, tensors, run, undo)


def all_reduce_(how: How, tensors: Tensors) -> Tensors:
    """Reduce each of `tensors` in place; returns them. Collective."""
    direct = how.direct
    for number, tensor in enumerate(tensors):
        target = tensor.detach() if tensor.requires_grad else tensor
        label = how.label(number, len(tensors))
        if how.is_scaled:
            target.copy_(all_reduce(how._replace(name=label), [target])[0])
        else:
            direct.all_reduce_(target, op=how.op, weight=how.weight, strategy=how.strategy, name=label)
    return tensors


def reduce_scatter(how: How, tensors: Tensors) -> Tensors:
    """Reduce each of `tensors`, (rows, ...), and return this rank's rows of each. Collective; differentiable."""
    direct = how.direct
    if how.is_plain(tensors):
        return [direct.reduce_scatter(tensors[0], op=how.op, strategy=how.strategy, name=how.name)]

    def run(tensor: torch.Tensor, label: str) -> torch.Tensor:
        return _scaled(how, tensor, lambda work, op: direct.reduce_scatter(
            work, op=op, strategy=how.strategy, name=label))  # fmt: skip

    def undo(gradients: Tensors) -> Tensors:
        factor = how.prescale * how.postscale * (direct.size if how.op == "sum" else 1)
        back = how.of_gradients(strategy=_one_that_offers(how, "all_gather"), prescale=1.0, postscale=1.0)
        return all_gather(back, [gradient * factor for gradient in gradients])

    return _differentiable(how, tensors, run, undo)


def all_gather(how: How, tensors: Tensors) -> Tensors:
    """All ranks' rows of each of `tensors`. Collective; differentiable."""
    direct = how.direct
    if how.is_plain(tensors):
        return [direct.all_gather(tensors[0], how.name, strategy=how.strategy, out=how.out)]

    def run(tensor: torch.Tensor, label: str) -> torch.Tensor:
        return direct.all_gather(tensor, label, strategy=how.strategy, out=how.out)

    def undo(gradients: Tensors) -> Tensors:
        averaged = all_reduce(how.of_gradients(op="average", strategy=_one_that_offers(how, "all_reduce")), gradients)
        rows = [tensor.shape[0] if tensor.dim() else 1 for tensor in tensors]
        everyones = direct.gather_objects(rows, "rows of gradients")[: direct.index]
        before = [sum(theirs[place] for theirs in everyones if theirs is not None) for place in range(len(rows))]
        return [
            gradient.narrow(0, start, count).view(tensor.shape)
            for gradient, start, count, tensor in zip(averaged, before, rows, tensors, strict=True)
        ]

    return _differentiable(how, tensors, run, undo)


def broadcast(how: How, tensors: Tensors) -> Tensors:
    """Rank `how.root`'s `tensors` on every rank. Collective; differentiable."""

    def run(tensor: torch.Tensor, label: str) -> torch.Tensor:
        return how.direct.broadcast_(_own(tensor, tensor), how.root, strategy=how.strategy, name=label)

    def undo(gradients: Tensors) -> Tensors:
        averaged = all_reduce(how.of_gradients(op="average", strategy=_one_that_offers(how, "all_reduce")), gradients)
        return averaged if how.direct.index == how.root else [gradient * 0 for gradient in averaged]

    return _differentiable(how, tensors, run, undo)


def broadcast_(how: How, tensors: Tensors) -> Tensors:
    """Put rank `how.root`'s `tensors` into everyone's; returns them. Collective."""
    for number, tensor in enumerate(tensors):
        label = how.label(number, len(tensors))
        how.direct.broadcast_(tensor.detach(), how.root, strategy=how.strategy, name=label)
    return tensors


class _Collective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensors], Tensors], undo: Callable[[Tensors], Tensors], *tensors: Any) -> Any:
        ctx.undo = undo
        return tuple(run([*tensors]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None, None, *ctx.undo([*gradients])


def _differentiable(
    how: How,
    tensors: Tensors,
    run: Callable[[torch.Tensor, str], torch.Tensor],
    undo: Callable[[Tensors], Tensors],
) -> Tensors:
    def run_all(plain: Tensors) -> Tensors:
        labels = [how.label(number, len(plain)) for number in range(len(plain))]
        return [run(tensor.detach(), label) for tensor, label in zip(plain, labels, strict=True)]

    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return [*_Collective.apply(run_all, undo, *tensors)]
    return run_all(tensors)


def _scaled(
    how: How, tensor: torch.Tensor, reduce: Callable[[torch.Tensor, str], torch.Tensor]
) -> torch.Tensor:  # fmt: skip
    """`reduce(tensor, op)` with the factors around it; 16-bit values are then rounded once, at the end."""
    if not how.is_scaled:
        return reduce(tensor, how.op)
    op, after = how.op, how.postscale
    if op == "average" and not tensor.dtype.is_floating_point:
        op, after = "sum", after / how.direct.size  # rounded once, as in Horovod
    work = _times(tensor.to(wide_dtype(tensor.dtype)), how.prescale)
    return _times(reduce(work, op), after).to(tensor.dtype)


def _times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 1.0:
        return tensor
    return tensor * factor if tensor.dtype.is_floating_point else (tensor.double() * factor).to(tensor.dtype)


def _own(work: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`work`, not in the memory of the caller's `tensor`, so that it may be overwritten."""
    return work.clone(memory_format=torch.contiguous_format) if work is tensor else work


def _total_weight(how: How) -> float:
    return float(sum(weight or 0.0 for weight in how.direct.gather_objects(how.weight, "weights of gradients")))


def _one_that_offers(how: How, collective: str) -> str:
    """The strategy of `how` where it offers `collective`, which the gradients of another need; else "auto"."""
    offering = itertools.chain(["auto"], how.direct.algorithms.names(collective))
    return how.strategy if how.strategy in offering else "auto"
