"""Jobs that take turns on one machine: all are started once, and those whose turn it is not are stopped.

An engine's idle loop and the busy waiting of MPI would take the cores from the job that is being measured, so SIGSTOP
goes to exactly the processes that a job's ranks named as themselves, and SIGCONT before their next turn. (The
alternative, a new job per measurement, pays a start of seconds and never puts two contenders close together in time.)
A job reads one JSON command per line from the standard input of its rank 0 and answers each with one line
(`benchmarks/peers/serve.py`). Whatever happens to this program, no job stays behind: see `Job.end`.
"""

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "@hvdkit-bench "
"""Begins a job's answers, which share standard output with whatever its libraries print."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class JobFailedError(Exception):
    """A job ended, refused a command or did not answer in time; says what it printed last."""


class Job:
    """One job under mpirun, named `name`; its ranks run once `wait_until_ready` was called, and only in a turn."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.hello: dict[str, Any] = {}
        self._ranks: dict[int, str] = {}
        self._answers: queue.Queue[str | None] = queue.Queue()
        # Appended to by both this program and the job.
        self._printed = tempfile.NamedTemporaryFile("a", errors="replace")  # noqa: SIM115
        # A session of its own: Ctrl-C reaches this program alone, which then ends its jobs in order.
        self._process = subprocess.Popen(
            list(command), env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed,
            text=True, errors="replace", start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Take the job's first answer, which names its processes, and stop them."""
        self.hello = self._answer(timeout_s)
        self._ranks = {pid: started for pid in self.hello["pids"] if (started := _start_of(pid)) is not None}
        self._signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The job's ranks run inside this context, and are stopped again after it."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def ask(self, command: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one command and return the answer; raises JobFailedError. Only in the job's turn."""
        # A job that takes no commands has ended or is about to; the answer tells which status it left.
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer(timeout_s)

    def dismiss(self) -> None:
        """Let the ranks run and leave: the end of their input tells them to."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def end(self, patience_s: float = 10) -> None:
        """Dismiss the job, and end by force what is still there after `patience_s`.

        Should this program be killed without a chance to call this, the kernel ends mpirun, which ends its ranks.
        """
        self.dismiss()
        for force in (None, signal.SIGTERM, signal.SIGKILL):
            if force is not None:
                self._process.send_signal(force)  # does nothing to a process that has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
                break
        # The ranks of an mpirun that had to be killed.
        self._signal(signal.SIGKILL)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            _, mark, answer = line.partition(MARK)
            if mark:
                self._answers.put(answer)
            else:
                self._printed.write(line)
                self._printed.flush()
        self._answers.put(None)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise self._failure(f"did not answer within {timeout_s:.0f} s") from None
        if line is None:
            self._answers.put(None)  # for whoever asks again
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            raise self._failure(f"ended with status {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self, what: str) -> JobFailedError:
        lines = [line for line in Path(self._printed.name).read_text(errors="replace").splitlines() if line.strip()]
        return JobFailedError("\n    ".join([f"the job {what}", *lines[-15:]]))

    def _signal(self, number: signal.Signals) -> None:
        for pid, started in self._ranks.items():
            # The kernel may have given the number of a rank that ended to a process that is not ours.
            if _start_of(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


@contextlib.contextmanager
def running() -> Iterator[list[Job]]:
    """A list of jobs that this context ends when it is left, also by Ctrl-C or SIGTERM."""
    jobs: list[Job] = []
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        yield jobs
    finally:
        # A second Ctrl-C must not leave jobs behind.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for job in jobs:
            job.dismiss()
        for job in jobs:
            job.end()
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start_of(pid: int) -> str | None:
    """When the process started, in the kernel's ticks: with its number, its identity. None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
