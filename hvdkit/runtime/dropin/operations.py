"""Horovod's operations with Horovod's signatures, for every dtype that Horovod takes and for bfloat16.

Where no tensor is bfloat16 and nothing is compressed the call goes to Horovod unchanged.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from hvdkit.runtime.dropin import bfloat16 as bf16
from hvdkit.runtime.dropin import engine_waits
from hvdkit.runtime.engine import horovod
from hvdkit.runtime.startup import name_of_unnamed

_ops = horovod("horovod.torch.mpi_ops")

Operation = Callable[..., Any]


class _ContiguousGradient(torch.autograd.Function):
    """The identity; its gradient is contiguous, as Horovod's backward demands and `sum().backward()` is not."""

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor) -> torch.Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


def named(plain: Operation) -> Operation:
    """`plain`, which gets a name where the user gives none, and whose kind and name the stall check learns."""
    signature = inspect.signature(plain)
    kind, is_async = plain.__name__.rstrip("_").removesuffix("_async"), "_async" in plain.__name__

    @functools.wraps(plain)
    def operation(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        process_set = call.arguments.get("process_set", _ops.global_process_set)
        if call.arguments.get("name") is None:
            call.arguments["name"] = name_of_unnamed(process_set.process_set_id)
        ranks = tuple(process_set.ranks) if process_set.process_set_id else None
        what = (kind, call.arguments["name"], ranks)
        return engine_waits.noted(what, lambda: plain(*call.args, **call.kwargs), gives_handle=is_async)

    return operation


def _differentiable(plain: Operation) -> Operation:
    """`plain`, whose results can be differentiated whatever is done with them."""

    def guard(result: Any) -> Any:
        if isinstance(result, list | tuple):
            return type(result)(guard(item) for item in result)
        needs_it = isinstance(result, torch.Tensor) and result.requires_grad
        return _ContiguousGradient.apply(result) if needs_it else result

    return functools.wraps(plain)(lambda *args, **kwargs: guard(plain(*args, **kwargs)))


def _compress(plain: Operation, tensors: list[Any], args: Any, kwargs: Any) -> tuple[list[Any], Any, Any]:
    """Compress `tensors` before they are widened: a compressor must see bfloat16, whose range float16 has not.

    Returns what is sent, a function that undoes the compression of the list of results, and the call's remaining
    arguments.
    """
    call = inspect.signature(plain).bind(tensors, *args, **kwargs).arguments
    call.pop(next(iter(call)))
    compression = call.pop("compression", None)
    if compression is None:
        return tensors, lambda results: results, call
    sent, contexts = zip(*(compression.compress(tensor) for tensor in tensors), strict=True)
    return [*sent], lambda results: [*map(compression.decompress, results, contexts)], call


def _is_compressed(plain: Operation, args: Any, kwargs: Any) -> bool:
    """Whether the call names a compression, which may turn any dtype into bfloat16."""
    return inspect.signature(plain).bind_partial(None, *args, **kwargs).arguments.get("compression") is not None


def _reduction(plain: Operation) -> Operation:
    """A reduction of one tensor that returns its result (differentiable)."""

    @functools.wraps(plain)
    def operation(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.is_bfloat16(tensor) and not _is_compressed(plain, args, kwargs):
            return plain(tensor, *args, **kwargs)
        (sent,), decompress, rest = _compress(plain, [tensor], args, kwargs)
        return decompress([bf16.narrow_like(plain(bf16.widen(sent), **rest), sent)])[0]

    return operation


def _reduction_async(plain: Operation) -> Operation:
    @functools.wraps(plain)
    def operation(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.is_bfloat16(tensor):
            return plain(tensor, *args, **kwargs)
        handle = plain(bf16.widen(tensor), *args, **kwargs)
        return bf16.finish_later(handle, lambda result: bf16.narrow_like(result, tensor))

    return operation


def _reduction_in_place_async(plain: Operation) -> Operation:
    @functools.wraps(plain)
    def operation(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.is_bfloat16(tensor):
            return plain(tensor, *args, **kwargs)
        handle = plain(bf16.widen(tensor.detach()), *args, **kwargs)
        return bf16.finish_later(handle, lambda result: bf16.store(result, tensor))

    return operation


def _grouped(plain: Operation) -> Operation:
    """A reduction of several tensors that returns their results (differentiable)."""

    @functools.wraps(plain)
    def operation(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.any_bfloat16(tensors) and not _is_compressed(plain, args, kwargs):
            return plain(tensors, *args, **kwargs)
        sent, decompress, rest = _compress(plain, [*tensors], args, kwargs)
        results = plain([bf16.widen(tensor) for tensor in sent], **rest)
        return decompress([bf16.narrow_like(result, tensor) for result, tensor in zip(results, sent, strict=True)])

    return operation


def _grouped_async(plain: Operation, put: Callable[[Any, Any], Any] = bf16.narrow_like) -> Operation:
    @functools.wraps(plain)
    def operation(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.any_bfloat16(tensors):
            return plain(tensors, *args, **kwargs)
        handle = plain([bf16.widen(tensor.detach()) for tensor in tensors], *args, **kwargs)
        return bf16.finish_later(
            handle, lambda results: [put(result, tensor) for result, tensor in zip(results, tensors, strict=True)]
        )

    return operation


def _movement(plain: Operation) -> Operation:
    """An operation that moves values and returns them (differentiable); all-to-all may return splits beside."""

    @functools.wraps(plain)
    def operation(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.is_bfloat16(tensor):
            return plain(tensor, *args, **kwargs)
        if tensor.requires_grad and torch.is_grad_enabled():
            return _map_first(plain(tensor.float(), *args, **kwargs), lambda out: out.to(torch.bfloat16))
        return _map_first(plain(bf16.as_bits(tensor), *args, **kwargs), lambda out: bf16.from_bits(out, tensor))

    return operation


def _movement_async(plain: Operation) -> Operation:
    @functools.wraps(plain)
    def operation(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.is_bfloat16(tensor):
            return plain(tensor, *args, **kwargs)
        handle = plain(bf16.as_bits(tensor), *args, **kwargs)
        return bf16.finish_later(
            handle, lambda result: _map_first(result, lambda out: bf16.from_bits(out, tensor))
        )  # fmt: skip

    return operation


def _grouped_movement(plain: Operation) -> Operation:
    @functools.wraps(plain)
    def operation(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.any_bfloat16(tensors):
            return plain(tensors, *args, **kwargs)
        if any(tensor.requires_grad for tensor in tensors) and torch.is_grad_enabled():
            results = plain([bf16.widen(tensor) for tensor in tensors], *args, **kwargs)
            return [bf16.narrow_like(result, tensor) for result, tensor in zip(results, tensors, strict=True)]
        results = plain([bf16.as_bits(tensor) for tensor in tensors], *args, **kwargs)
        return [bf16.from_bits(result, tensor) for result, tensor in zip(results, tensors, strict=True)]

    return operation


def _grouped_movement_async(plain: Operation) -> Operation:
    @functools.wraps(plain)
    def operation(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if not bf16.any_bfloat16(tensors):
            return plain(tensors, *args, **kwargs)
        handle = plain([bf16.as_bits(tensor) for tensor in tensors], *args, **kwargs)
        return bf16.finish_later(
            handle,
            lambda results: [bf16.from_bits(out, tensor) for out, tensor in zip(results, tensors, strict=True)],
        )

    return operation


def _map_first(result: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return (function(result[0]), *result[1:]) if isinstance(result, tuple) else function(result)


@functools.wraps(_ops.synchronize)
def synchronize(handle: Any) -> Any:
    """Wait for an asynchronous operation and return its result."""
    return bf16.finish(handle, _ops.synchronize(handle))


@functools.wraps(_ops.sparse_allreduce_async)
def sparse_allreduce_async(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Reduce a sparse tensor; the handle is a function that returns the result."""
    if not bf16.is_bfloat16(tensor):
        return _ops.sparse_allreduce_async(tensor, *args, **kwargs)
    pending = _ops.sparse_allreduce_async(tensor.to(torch.float32), *args, **kwargs)
    return lambda: pending().to(torch.bfloat16)


allreduce = _reduction(_differentiable(named(_ops.allreduce)))
allreduce_async = _reduction_async(named(_ops.allreduce_async))
allreduce_async_ = _reduction_in_place_async(named(_ops.allreduce_async_))
grouped_allreduce = _grouped(_differentiable(named(_ops.grouped_allreduce)))
grouped_allreduce_async = _grouped_async(named(_ops.grouped_allreduce_async))
grouped_allreduce_async_ = _grouped_async(named(_ops.grouped_allreduce_async_), put=bf16.store)
reducescatter = _reduction(_differentiable(named(_ops.reducescatter)))
reducescatter_async = _reduction_async(named(_ops.reducescatter_async))
grouped_reducescatter = _grouped(_differentiable(named(_ops.grouped_reducescatter)))
grouped_reducescatter_async = _grouped_async(named(_ops.grouped_reducescatter_async))
allgather = _movement(_differentiable(named(_ops.allgather)))
allgather_async = _movement_async(named(_ops.allgather_async))
grouped_allgather = _grouped_movement(_differentiable(named(_ops.grouped_allgather)))
grouped_allgather_async = _grouped_movement_async(named(_ops.grouped_allgather_async))
broadcast = _movement(_differentiable(named(_ops.broadcast)))
broadcast_async = _movement_async(named(_ops.broadcast_async))
alltoall = _movement(_differentiable(named(_ops.alltoall)))
alltoall_async = _movement_async(named(_ops.alltoall_async))
_broadcast_async_ = named(_ops.broadcast_async_)
# Horovod's backward functions call these by their names in its module, without a name for the operation.
for _name in ("allreduce", "grouped_allreduce", "allgather", "grouped_allgather", "reducescatter",
              "grouped_reducescatter", "broadcast", "alltoall"):  # fmt: skip
    setattr(_ops, _name, named(getattr(_ops, _name)))


# Horovod's blocking operations call it by its name too.
_ops.synchronize = engine_waits.watched(_ops.synchronize)


@functools.wraps(_ops.broadcast_async_)
def broadcast_async_(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Broadcast into `tensor`, asynchronously."""
    if not bf16.is_bfloat16(tensor):
        return _broadcast_async_(tensor, *args, **kwargs)
    return bf16.finish_later(_broadcast_async_(bf16.as_bits(tensor), *args, **kwargs), lambda _: tensor)


@functools.wraps(_ops.broadcast_)
def broadcast_(*args: Any, **kwargs: Any) -> Any:
    """Broadcast into a tensor."""
    return synchronize(broadcast_async_(*args, **kwargs))


@functools.wraps(_ops.allreduce_)
def allreduce_(*args: Any, **kwargs: Any) -> Any:
    """Reduce into a tensor."""
    return synchronize(allreduce_async_(*args, **kwargs))


@functools.wraps(_ops.grouped_allreduce_)
def grouped_allreduce_(*args: Any, **kwargs: Any) -> Any:
    """Reduce several tensors into themselves."""
    return synchronize(grouped_allreduce_async_(*args, **kwargs))
