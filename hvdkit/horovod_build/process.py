"""Child processes that never outlive us: each gets a process group of its own, which is ended whole."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_GRACE_S = 5.0


@contextmanager
def process_group(
    command: Sequence[str], output: IO[str] | int, env: Mapping[str, str], cwd: Path | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Start `command` with both streams to `output`; whatever of it still runs at the end of the block is ended."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process)


def run_limited(command: Sequence[str], env: Mapping[str, str], timeout_s: float, cwd: Path) -> tuple[int | None, str]:
    """The status of `command`, or None if it had to be ended after `timeout_s`, and what it printed."""
    with process_group(command, subprocess.PIPE, env, cwd) as process:
        try:
            out, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return None, process.communicate()[0]
    return process.returncode, out


@contextmanager
def uninterruptible() -> Iterator[None]:
    """Ctrl-C and a scheduler's SIGTERM are ignored within the block, by this process and by those it starts."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: "subprocess.Popen[str]") -> None:
    # SIGTERM first: mpirun and horovodrun then end their ranks, which have process groups of their own.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
