"""A rank that fails ends the whole job, quickly, with one readable message."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from hvdkit.errors import HvdkitError
from hvdkit.runtime.launcher import launch_info

_GRACE_S = 1.0


def die(message: str, status: int = 1) -> NoReturn:
    """End this process because of a fault that every rank sees alike (bad options, a missing file).

    Rank 0, as the launcher announced it, prints `message` in one write; the others wait a moment first, since the
    launcher stops every rank as soon as one of them ends with a status other than 0. Works before MPI has started.
    """
    if launch_info().rank == 0:
        _write(f"hvdkit: error: {message}\n")
    else:
        time.sleep(_GRACE_S)
    sys.stdout.flush()
    leave(status)


def fail_job(error: BaseException, rank: int, size: int) -> NoReturn:
    """End all ranks because this one failed: print what happened in one write and abort the job. Never returns."""
    if isinstance(error, HvdkitError):
        text = f"hvdkit: rank {rank} of {size} failed, the job ends: {error}\n"
    else:
        trace = "".join(traceback.format_exception(error))
        text = f"hvdkit: rank {rank} of {size} failed, the job ends:\n{trace}"
    _write(text)
    leave(1)


def leave(status: int) -> NoReturn:
    """Leave at once with `status`, without waiting for other ranks: MPI_Abort where MPI runs, else `os._exit`."""
    sys.stdout.flush()
    sys.stderr.flush()
    module = sys.modules.get("mpi4py.MPI")
    if module is not None and module.Is_initialized() and not module.Is_finalized():
        time.sleep(0.1)  # mpirun forwards what was written before it learns of the abort
        module.COMM_WORLD.Abort(status)
    os._exit(status)


def install_hooks(rank: int, size: int) -> Callable[[], None]:
    """From now on an uncaught exception on this rank ends the job; returns what undoes it."""
    previous = sys.excepthook

    def on_error(kind: type[BaseException], error: BaseException, trace: object) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _write(f"hvdkit: rank {rank} of {size} was interrupted\n")
            leave(130)
        fail_job(error, rank, size)

    def restore() -> None:
        if sys.excepthook is on_error:
            sys.excepthook = previous

    sys.excepthook = on_error
    return restore


@contextmanager
def end_job_on_error() -> Iterator[None]:
    """Around a program's main function: HvdkitError becomes one message from rank 0 and status 1 on every rank.

    For errors that all ranks raise alike; an error that strikes one rank should go through `raise_together` first.
    """
    try:
        yield
    except HvdkitError as error:
        die(str(error))


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
