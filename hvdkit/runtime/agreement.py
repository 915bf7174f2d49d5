"""Small objects exchanged between all ranks: mpi4py under MPI, Horovod's engine under Gloo.

For set-up, errors and reports. Each call is collective, costs one pickled object per rank, and takes no tensors. The
stall check follows each, by its number and the function that asked for it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hvdkit.errors import HvdkitError
from hvdkit.runtime.engine import horovod
from hvdkit.runtime.world import World

T = TypeVar("T")


def gather_objects(world: World, item: T) -> list[T]:
    """Every rank's `item`, in rank order, on every rank. Collective."""
    if world.size == 1:
        return [item]
    with _watched(world):
        if world.comm is not None:
            return world.comm.allgather(item)
        gathered: list[T] = horovod().allgather_object(item, name="hvdkit.gather_objects")
        return gathered


def share_object(world: World, item: T, root: int = 0) -> T:
    """Rank `root`'s `item` on every rank (the others' argument is ignored). Collective."""
    if world.size == 1:
        return item
    with _watched(world):
        if world.comm is not None:
            received: T = world.comm.bcast(item, root=root)
            return received
        shared: T = horovod().broadcast_object(item, root_rank=root, name="hvdkit.share_object")
        return shared


def raise_together(world: World, error: Exception | None) -> None:
    """Raise on all ranks if any rank brings an `error`, return on all ranks otherwise. Collective.

    A fault that strikes one rank (its disk, its file) thereby becomes one that every rank sees alike. The error is
    of the type that the lowest failing rank brought if it is an HvdkitError, else a plain HvdkitError.
    """
    raised = None if error is None else (type(error), str(error))
    faults = [(rank, item) for rank, item in enumerate(gather_objects(world, raised)) if item is not None]
    if not faults:
        return
    kind, text = faults[0][1]
    if len(faults) < world.size:
        ranks = ", ".join(str(number) for number, _ in faults)
        text = f"{text} (on rank {ranks} of {world.size})"
    if not issubclass(kind, HvdkitError):
        raise HvdkitError(f"{kind.__name__}: {text}") from error
    raise kind(text) from error


def together(world: World, work: Callable[[], T]) -> T:
    """The result of `work()` on this rank, or on all ranks the error that it raised on any. Collective."""
    error: Exception | None = None
    try:
        result = work()
    except Exception as problem:
        error = problem
    raise_together(world, error)
    return result


@contextmanager
def _watched(world: World) -> Iterator[None]:
    if not world.is_whole:
        yield
        return
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename in _PASSED_BY:
        frame = frame.f_back
    world.watch.begin_agreement(frame.f_code.co_name.strip("<>"))
    try:
        yield
    finally:
        world.watch.end()


_PASSED_BY = (__file__, contextmanager.__code__.co_filename)
"""Files whose functions say nothing about what is agreed on."""
