"""A rank that fails ends the whole job, quickly, with one readable message.

Uncaught exceptions reach `sys.excepthook`. `sys.exit(3)` does not, and a process cannot ask what status it is ending
with; but without an abort it would wait in MPI_Finalize for ranks that wait for it in a collective. So `sys.exit`
raises a SystemExit that notes when the interpreter itself, and not a handler in Python, takes its status.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from hvdkit.contract import USAGE_STATUS
from hvdkit.errors import ConfigError, HvdkitError, LaunchError
from hvdkit.runtime.engine import lost_another_rank
from hvdkit.runtime.launcher import launch_info

_GRACE_S = 1.0
_ABORT_S = 5.0
"""How long MPI_Abort may take: where the network to mpirun is cut it may not come back."""
_ALONE_S = 4.0
"""How long a rank waits for rank 0 to speak for it."""
_STOP_ALL = ("mpirun", "horovodrun")
"""Launchers that stop every rank when one ends with another status than 0, before MPI has started too."""


def die(message: str, status: int = 1) -> NoReturn:
    """End this process because of a fault that every rank sees alike (bad options, a missing file).

    Rank 0, as the launcher announced it, prints `message` in one write; the others wait a moment first, since the
    launcher stops every rank as soon as one of them ends with a status other than 0. One that lives on is the only one
    that met the fault, and says so. Works before MPI has started.
    """
    launch = launch_info()
    if launch.rank == 0:
        _write(f"hvdkit: error: {message}\n")
    else:
        time.sleep(_ALONE_S)
    if launch.rank > 0 and launch.launcher.startswith(_STOP_ALL):
        _write(f"hvdkit: error on rank {launch.rank} of {launch.size}, {socket.gethostname()}: {message}\n")
    sys.stdout.flush()
    leave(status)


def fail_job(error: BaseException, rank: int, size: int) -> NoReturn:
    """End all ranks because this one failed: print what happened in one write and abort the job. Never returns.

    A rank other than 0 waits a moment first: where all fail alike, rank 0 speaks for them. So does one that merely
    lost another rank, since that one, or the launcher, says why.
    """
    if isinstance(error, LaunchError):
        die(str(error))  # every rank is alone, so that no abort of rank 0's would silence the others
    lost = lost_another_rank(error)
    time.sleep(_GRACE_S * (1 + min(rank, 8) / 2) if lost else _GRACE_S * (rank > 0))
    try:
        if isinstance(error, LaunchError) and rank > 0:
            text = ""
        elif isinstance(error, HvdkitError):
            text = f"hvdkit: rank {rank} of {size} failed, the job ends: {error}\n"
        else:
            trace = "".join(traceback.format_exception(error, chain=not lost))
            text = f"hvdkit: rank {rank} of {size} failed, the job ends:\n{trace}"
        _write(text)
    except MemoryError:
        os.write(2, b"hvdkit: a rank failed, the job ends: it has no memory left\n")
    finally:
        leave(1)


def leave(status: int) -> NoReturn:
    """Leave at once with `status`, without waiting for other ranks: MPI_Abort where MPI has some, else `os._exit`."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        module = sys.modules.get("mpi4py.MPI")
        running = module is not None and module.Is_initialized() and not module.Is_finalized()
        if module is not None and running and module.COMM_WORLD.Get_size() > 1:
            time.sleep(0.1)  # mpirun forwards what was written before it learns of the abort
            _end_anyway(status)
            module.COMM_WORLD.Abort(status)
    finally:  # whatever went wrong: this process may have no memory left
        os._exit(status)


def _end_anyway(status: int) -> None:
    """See to it that this process ends in `_ABORT_S`, should MPI_Abort hang."""
    try:
        last_resort = threading.Timer(_ABORT_S, os._exit, [status])
        last_resort.daemon = True
        last_resort.start()
    except (RuntimeError, MemoryError):  # no room for a thread; an alarm ends a process that does not handle it
        signal.alarm(int(_ABORT_S))


class FailureHooks:
    """From its making to `remove()`, a failure of this process, rank `rank` of `size`, ends the job.

    Failures are uncaught exceptions of the main thread and `sys.exit` with a status other than 0. As in any Python
    program, an exception in another thread is printed and ends that thread alone.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size, self._pid = rank, size, os.getpid()
        self._previous_hook, self._previous_exit = sys.excepthook, sys.exit
        self._status = 0
        sys.excepthook = self._on_error
        sys.exit = self._exit  # type: ignore[assignment]

    def remove(self) -> None:
        """Put back what was there before, where nobody has put something else there since."""
        if sys.excepthook == self._on_error:
            sys.excepthook = self._previous_hook
        if sys.exit == self._exit:
            sys.exit = self._previous_exit

    def end_job_on_bad_status(self) -> None:
        """End the job if this process is ending with a status other than 0; for an exit handler."""
        if self._status and os.getpid() == self._pid:
            time.sleep(_GRACE_S * (self._rank > 0))
            _write(f"hvdkit: rank {self._rank} of {self._size} ended with status {self._status}, the job ends\n")
            leave(self._status)

    def _on_error(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:  # fmt: skip
        if os.getpid() != self._pid:  # a child that was forked off; the job is not its business
            self._previous_hook(kind, error, trace)
            return
        if issubclass(kind, KeyboardInterrupt):
            _write(f"hvdkit: rank {self._rank} of {self._size} was interrupted\n")
            leave(130)
        fail_job(error, self._rank, self._size)

    def _exit(self, status: Any = None, /) -> NoReturn:
        raise _WatchedExit(status, self)


class _WatchedExit(SystemExit):
    def __init__(self, status: Any, hooks: FailureHooks) -> None:
        super().__init__(status)
        self._hooks = hooks

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        # The interpreter reads the status of an uncaught exit when no Python code runs any more.
        if name == "code" and sys._getframe().f_back is None:
            self._hooks._status = 0 if value is None else value & 0xFF if isinstance(value, int) else 1
        return value


@contextmanager
def end_job_on_error() -> Iterator[None]:
    """Around a program's main function: HvdkitError becomes one message from rank 0 and a status on every rank.

    The status is 1, and 2 for a ConfigError, which would come again at every start.

    For errors that all ranks raise alike; an error that strikes one rank should go through `raise_together` first.
    """
    try:
        yield
    except HvdkitError as error:
        die(str(error), USAGE_STATUS if isinstance(error, ConfigError) else 1)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
