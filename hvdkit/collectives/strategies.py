"""Horovod's operations with a keyword more: `strategy=` has one of hvdkit's own algorithms do the call.

Without it, and with "horovod", a call goes to Horovod's engine as ever, which negotiates by name and is asynchronous.
With any other strategy all ranks make the same calls in the same order, as in MPI, and a call is done when it returns,
the asynchronous ones too: they return a handle that is done (`handles`). "auto" takes Horovod's engine where
hvdkit's own algorithms cannot work: tensors on GPUs, and jobs launched with Gloo.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from hvdkit.collectives import differentiable as own
from hvdkit.collectives.algorithms import NAMES
from hvdkit.collectives.checks import check_out
from hvdkit.collectives.connect import direct_collectives, why_no_direct
from hvdkit.collectives.differentiable import How, Tensors
from hvdkit.collectives.direct import DirectCollectives
from hvdkit.collectives.handles import done
from hvdkit.collectives.reduction import reduction_for
from hvdkit.runtime import require_world
from hvdkit.runtime.dropin import operations
from hvdkit.runtime.engine import horovod

_ops = horovod("horovod.torch.mpi_ops")
_OP_NAMES = {_ops.Average: "average", _ops.Sum: "sum", _ops.Min: "min", _ops.Max: "max", _ops.Product: "product"}

_STRATEGY_DOC = """
        strategy: hvdkit's: None or "horovod" for Horovod's engine, one of hvdkit's own algorithms ("mpi", "ring",
            "tree", "shared_memory", "hierarchical"), or "auto", which takes the fastest. All ranks then make the
            same calls in the same order (else CollectiveMismatchError on all of them), the call is done when it
            returns, and tensors need not be contiguous. ValueError for a strategy that cannot do it here."""
_WEIGHT_DOC = """
        weight: hvdkit's: this rank's weight, 0 or more. The average is then sum_j w_j x_j / sum_j w_j and the sum
            sum_j w_j x_j; floating-point tensors only. Implies strategy="auto"."""
_OUT_DOC = """
        out: hvdkit's: a contiguous tensor for the result, (rows of all ranks, ...), which is returned; for results
            that need no gradients. Implies strategy="auto"."""


class _Operation:
    """Horovod's operation `plain`, and how to call it; `collective` is its kind among hvdkit's own."""

    def __init__(self, plain: Callable[..., Any], collective: str) -> None:
        self.plain, self.collective = plain, collective
        self.name = name = plain.__name__
        self.is_grouped, self.is_async, self.is_in_place = name.startswith("grouped"), "async" in name, name[-1] == "_"
        self.own: Callable[[How, Tensors], Tensors] = getattr(own, collective + ("_" if self.is_in_place else ""))
        self.signature = inspect.signature(plain)
        parameters = self.signature.parameters
        self._names = tuple(parameters)
        self._defaults = {name: given.default for name, given in parameters.items() if given.default is not given.empty}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name, as `signature.bind` and `apply_defaults` find them, but quickly; raises TypeError."""
        arguments = {**self._defaults, **dict(zip(self._names, args, strict=False)), **kwargs}
        given_twice = not kwargs.keys().isdisjoint(self._names[: len(args)])
        if given_twice or len(args) > len(self._names) or len(arguments) != len(self._names):
            self.signature.bind(*args, **kwargs)  # says what is wrong
        return arguments


class _Call:
    """One call of a user's: the `arguments` of `operation` by name, with those that were not given."""

    def __init__(self, operation: _Operation, arguments: dict[str, Any]) -> None:
        self.operation, self.arguments = operation, arguments
        self._first = next(iter(operation.signature.parameters))
        given = arguments[self._first]
        self.tensors: Tensors = [*given] if operation.is_grouped else [given]

    def result(self, tensors: Tensors) -> Any:
        """What the function returns when these are its results."""
        result = tensors if self.operation.is_grouped else tensors[0]
        return done(result) if self.operation.is_async else result

    def by_engine(self, tensors: Tensors) -> Tensors:
        """The results of Horovod's function for `tensors`, when they are there."""
        self.arguments[self._first] = tensors if self.operation.is_grouped else tensors[0]
        result = self.operation.plain(**self.arguments)
        result = operations.synchronize(result) if self.operation.is_async else result
        return [*result] if self.operation.is_grouped else [result]


def _with_strategy(
    name: str, collective: str, *, takes_weight: bool = False, takes_out: bool = False
) -> Callable[..., Any]:
    """Horovod's operation `name` with `strategy=`; `collective` is its kind among hvdkit's own."""
    plain = getattr(operations, name)
    known = _Operation(plain, collective)

    @functools.wraps(plain)
    def operation(*args: Any, strategy: str | None = None, **kwargs: Any) -> Any:
        weight = kwargs.pop("weight", None) if takes_weight else None
        out = kwargs.pop("out", None) if takes_out else None
        has_more = weight is not None or out is not None
        if strategy is None and has_more:
            strategy = "auto"
        if strategy is None or (strategy == "horovod" and not has_more):
            return plain(*args, **kwargs)
        call = _Call(known, known.bind(args, kwargs))
        direct = _direct(call, strategy)
        if direct is None:
            return call.result(_by_engine(call, weight, out))
        return call.result(_by_own(call, direct, strategy, weight, out))

    extra = ["strategy", *(["weight"] if takes_weight else []), *(["out"] if takes_out else [])]
    keywords = [inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=None) for word in extra]
    operation.__signature__ = known.signature.replace(  # type: ignore[attr-defined]
        parameters=[*known.signature.parameters.values(), *keywords]
    )
    head, returns, tail = (plain.__doc__ or "").partition("\n    Returns:")
    extra_doc = _STRATEGY_DOC + (_WEIGHT_DOC if takes_weight else "") + (_OUT_DOC if takes_out else "")
    operation.__doc__ = f"{head.rstrip()}{extra_doc}\n{returns}{tail}"
    return operation


def _direct(call: _Call, strategy: str) -> DirectCollectives | None:
    """hvdkit's own collectives for this call, None where Horovod's engine is to do it; raises ValueError."""
    if strategy == "horovod":
        return None
    world = require_world()
    if why := why_no_direct(world):
        if strategy == "auto":
            return None
        _check_name(strategy)
        raise ValueError(f"strategy={strategy!r}: {why}; use one of auto, horovod")
    foreign = None
    for tensor in call.tensors:
        if not tensor.is_cpu or tensor.layout != torch.strided:
            foreign = tensor
    if foreign is not None and strategy == "auto":
        return None
    direct = direct_collectives(world, _checked_process_set(call.arguments["process_set"]))
    if foreign is not None:
        _refuse(direct, ValueError(
            f"strategy={strategy!r}: hvdkit's own algorithms take dense tensors on the CPU, not {foreign.layout} on "
            f"{foreign.device}; use one of auto, horovod"))  # fmt: skip
    collective = call.operation.collective
    if strategy != "auto" and strategy not in direct.algorithms.names(collective):
        valid = dict.fromkeys(["auto", "horovod", *direct.algorithms.names(collective)])
        unknown = f"it does not offer {collective}" if strategy in NAMES else "there is no such algorithm"
        why = direct.algorithms.reasons.get(strategy, unknown)
        _refuse(direct, ValueError(f"strategy={strategy!r}: {why}; for {call.operation.name} use one of "
                                   f"{', '.join(valid)}"))  # fmt: skip
    return direct


def _check_name(strategy: str) -> None:
    if strategy not in NAMES:
        raise ValueError(f"strategy={strategy!r}: there is no such algorithm; use one of auto, horovod")


def _checked_process_set(process_set: Any) -> Any:
    """`process_set` as hvdkit's own collectives take it; None for all ranks."""
    if process_set.process_set_id is None:
        raise ValueError(f"{process_set} does not exist; make it known with hvd.add_process_set()")
    if process_set.process_set_id == 0:
        return None
    if not process_set.included():
        raise ValueError(f"this process, rank {_ops.rank()}, is not one of the ranks of {process_set}")
    return process_set


def _refuse(direct: DirectCollectives, error: Exception) -> NoReturn:
    """Raise `error`, a mistake in this rank's arguments, such that the others learn of it. Collective."""
    direct.refuse(error)


def _by_own(
    call: _Call, direct: DirectCollectives, strategy: str, weight: float | None, out: torch.Tensor | None
) -> Tensors:
    operation = call.operation
    try:
        how = _how(call, direct, strategy, weight, out)
        sent, decompress = _compressed(call)
    except (TypeError, ValueError) as error:
        _refuse(direct, error)
    if operation.is_async and not operation.is_in_place:
        sent = [tensor.detach() for tensor in sent]
    return decompress(operation.own(how, sent))


def _check_out(call: _Call, out: torch.Tensor | None) -> None:
    if out is not None and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
        raise ValueError(f"{call.operation.name}: out= holds no gradients; leave it out, or use torch.no_grad()")


def _how(call: _Call, direct: DirectCollectives, strategy: str, weight: float | None, out: torch.Tensor | None) -> How:
    arguments = call.arguments
    _check_out(call, out)
    if not call.tensors:
        raise ValueError(f"{call.operation.name}: there are no tensors in the list; bring at least one")
    root, root_rank = 0, arguments.get("root_rank")
    if root_rank is not None:
        ranks = arguments["process_set"].ranks or list(range(direct.size))
        if root_rank not in ranks:
            raise ValueError(f"{call.operation.name}: root_rank={root_rank} is not one of the ranks {ranks}")
        root = ranks.index(root_rank)
    return How(direct, strategy, arguments["name"] or "", _op_name(arguments), arguments.get("prescale_factor", 1.0),
               arguments.get("postscale_factor", 1.0), weight, root, out)  # fmt: skip


def _op_name(arguments: dict[str, Any]) -> str:
    if "op" not in arguments:
        return "sum"
    op = _ops.handle_average_backwards_compatibility(arguments["op"], arguments.get("average"))
    if op not in _OP_NAMES:
        name = "Adasum" if op == _ops.Adasum else repr(op)
        raise ValueError(
            f"op={name} needs Horovod's engine: leave out strategy= and weight=, or use one of Average, Sum, Min, "
            "Max, Product"
        )
    return _OP_NAMES[op]


def _compressed(call: _Call) -> tuple[Tensors, Callable[[Tensors], Tensors]]:
    """What is sent, and a function that makes the results of what was received."""
    compression = call.arguments.get("compression")
    if compression is None:
        return call.tensors, lambda results: results
    if not (hasattr(compression, "compress") and hasattr(compression, "decompress")):
        kind = getattr(compression, "__name__", type(compression).__name__)  # the same words on all ranks
        raise ValueError(
            f"compression={kind} is for DistributedOptimizer; here use one that changes the dtype, as "
            "Compression.fp16 and Compression.bf16 do"
        )
    sent, contexts = zip(*(compression.compress(tensor) for tensor in call.tensors), strict=True)
    return [*sent], lambda results: [*map(compression.decompress, results, contexts)]


def _by_engine(call: _Call, weight: float | None, out: torch.Tensor | None = None) -> Tensors:
    """The call by Horovod's engine, which wants contiguous tensors; weights are multiplied in before."""
    tensors, reduction = call.tensors, None
    _check_out(call, out)
    if weight is not None:
        op, (tensor,) = _op_name(call.arguments), tensors
        mine = torch.tensor([weight], dtype=torch.float64)
        weights = operations.allgather(mine, process_set=call.arguments["process_set"]).tolist()
        reduction = reduction_for(op, len(weights), tensor.dtype, weights)
        call.arguments.update(op=_ops.Sum, average=None)
        index = call.arguments["process_set"].rank()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not call.operation.is_in_place):
            sent = [tensor * reduction.factor(index)]
    else:
        sent = [tensor.contiguous() for tensor in tensors]
    results = call.by_engine(sent)
    if out is not None:
        check_out(call.operation.name, results[0], out)  # after it, so that no rank waits for this one
        if len(out) != len(results[0]):
            raise ValueError(f"{call.operation.name}: the ranks bring {len(results[0])} rows, out= has {len(out)}")
        return [out.copy_(results[0])]
    if not call.operation.is_in_place:
        return results
    with torch.no_grad():
        for tensor, result in zip(tensors, results, strict=True):
            if tensor.data_ptr() != result.data_ptr():
                tensor.copy_(result)
    return tensors


_reduce = functools.partial(_with_strategy, collective="all_reduce")
_scatter = functools.partial(_with_strategy, collective="reduce_scatter")
_gather = functools.partial(_with_strategy, collective="all_gather")
_broadcast = functools.partial(_with_strategy, collective="broadcast")

allreduce = _reduce("allreduce", takes_weight=True)
allreduce_ = _reduce("allreduce_", takes_weight=True)
allreduce_async = _reduce("allreduce_async")
allreduce_async_ = _reduce("allreduce_async_")
grouped_allreduce = _reduce("grouped_allreduce")
grouped_allreduce_ = _reduce("grouped_allreduce_")
grouped_allreduce_async = _reduce("grouped_allreduce_async")
grouped_allreduce_async_ = _reduce("grouped_allreduce_async_")
reducescatter = _scatter("reducescatter")
reducescatter_async = _scatter("reducescatter_async")
grouped_reducescatter = _scatter("grouped_reducescatter")
grouped_reducescatter_async = _scatter("grouped_reducescatter_async")
allgather = _gather("allgather", takes_out=True)
allgather_async = _gather("allgather_async")
grouped_allgather = _gather("grouped_allgather")
grouped_allgather_async = _gather("grouped_allgather_async")
broadcast = _broadcast("broadcast")
broadcast_ = _broadcast("broadcast_")
broadcast_async = _broadcast("broadcast_async")
broadcast_async_ = _broadcast("broadcast_async_")
