"""Ends a job whose supervisor was killed: `python -m hvdkit.launch.guard`, a child of the supervisor.

SIGKILL leaves a supervisor no time to end anything, and the launcher and its ranks would live on, for hours and in the
way of the next start. The guard waits at a pipe, which the kernel closes when the supervisor is gone. The kernel's own
means, PR_SET_PDEATHSIG, reaches the direct child alone: under horovodrun a shell, which dies and leaves mpirun running.

The supervisor writes the launcher's number while there is one, and `done` when it ends in order.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

import psutil

from hvdkit.contract import ATTEMPT, RUN_NAME
from hvdkit.launch.everywhere import Everywhere
from hvdkit.launch.hosts import host_list, parse_hosts
from hvdkit.launch.supervise import forward

_GRACE_S = 10.0


class Guard(AbstractContextManager["Guard"]):
    """The supervisor's side: the guard runs while this is entered."""

    def __init__(self, job: Everywhere) -> None:
        words = [job.run_name, str(job.folder), *([host_list(job.hosts)] if job.hosts else [])]
        # In a session of its own: what ends the supervisor's whole group must not end the guard. Nor must what ends a
        # job that this one is started in, of whose name the guard is free.
        safe = ["-P"] if sys.version_info >= (3, 11) else []  # modules of the user's folder are not for the guard
        self._process = subprocess.Popen(
            [sys.executable, *safe, "-m", "hvdkit.launch.guard", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in (RUN_NAME, ATTEMPT)},
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """The launcher is process `pid`; 0 when there is none."""
        self._write(f"{pid}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        if kind is None:
            self._write("done\n")
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # somebody ended the guard: the job goes on
            self._process.stdin.write(line)
            self._process.stdin.flush()


def main(argv: list[str] | None = None) -> int:
    """Wait for the supervisor's end; if it came out of order, end its job."""
    parser = argparse.ArgumentParser(prog="python -m hvdkit.launch.guard", description="Ends a job without supervisor.")
    parser.add_argument("run_name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("hosts", nargs="?")
    options = parser.parse_args(argv)
    last = "0"
    for line in sys.stdin:
        last = line.strip()
    if last == "done":
        return 0
    _end_launcher(int(last), options.run_name)
    Everywhere(options.run_name, parse_hosts(options.hosts) if options.hosts else (), options.folder).clean()
    return 0


def _end_launcher(pid: int, run_name: str) -> None:
    """It ends the ranks on all hosts in its own way, if it gets the time to."""
    with suppress(psutil.Error):
        launcher = psutil.Process(pid)
        if pid and launcher.environ().get(RUN_NAME) == run_name:
            family = [launcher, *launcher.children(recursive=True)]
            forward(pid, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE_S
            psutil.wait_procs(family, timeout=deadline - time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
