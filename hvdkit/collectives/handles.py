"""Handles of operations that are done when they return, beside those of Horovod's engine."""

import functools
from typing import Any

from hvdkit.runtime.dropin import operations
from hvdkit.runtime.engine import horovod

_ops = horovod("horovod.torch.mpi_ops")


class DoneHandle(int):
    """A handle, as Horovod's operations return them, of one that is done."""

    results: list[Any]


def done(result: Any) -> DoneHandle:
    """The handle of an operation that has this `result`."""
    handle = DoneHandle(-1)
    handle.results = [result]
    return handle


@functools.wraps(operations.synchronize)
def synchronize(handle: Any) -> Any:
    """Wait for an asynchronous operation and return its result; None if it was returned before."""
    if isinstance(handle, DoneHandle):
        return handle.results.pop() if handle.results else None
    return operations.synchronize(handle)


@functools.wraps(_ops.poll)
def poll(handle: Any) -> bool:
    """Whether an asynchronous operation is done."""
    return isinstance(handle, DoneHandle) or bool(_ops.poll(handle))
