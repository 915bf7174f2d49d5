"""Starts one command of a case, waits for its end with a limit, and looks for what is left of it."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.jobs import ROOT, clean_environ

MARK = "HVDKIT_CHAOS_CASE"
"""A variable in the environment of all that a case starts."""
_SETTLE_S = 15.0
"""What is on its way out may take so long."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended, or was ended."""

    status: int | None
    """None for one that did not end by itself."""
    time: float
    output: str


def run(
    command: Sequence[str], mark: str, temporary: Path, output: Path, *, limit_s: float, env: Mapping[str, str]
) -> Ended:
    """Run `command` in a session of its own, with TMPDIR `temporary`; all it starts here carries `mark`."""
    more = {MARK: mark, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), **env}
    with output.open("w", errors="replace") as file:
        process = subprocess.Popen(
            list(command), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=clean_environ(more),
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        except BaseException:
            end_processes(mark)
            raise
    ended = time.time()
    if status is None:
        end_processes(mark)
        process.wait()
    return Ended(status, ended, output.read_text(errors="replace"))


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that the case started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # ended meanwhile, or not ours to look at
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_processes(mark: str) -> None:
    """Kill all that the case started."""
    while found := marked(mark):
        for process in found:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=2)


def wait_for_none(mark: str, limit_s: float = _SETTLE_S) -> list[str]:
    """Wait until nothing of the case lives; returns what does after the limit, and kills it."""
    deadline = time.monotonic() + limit_s
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = []
    for process in found:
        with suppress(psutil.Error):
            left.append(f"process left: {' '.join(process.cmdline())[:200]}")
    if found:
        end_processes(mark)
    return left


def entries(folder: Path) -> set[str]:
    """What lies in a folder and below, but folders that hold nothing."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
