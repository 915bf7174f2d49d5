"""A job that a program of hvdkit's starts for itself on this machine, waits for, and ends whatever happens."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from hvdkit.errors import LaunchError
from hvdkit.launch.command import Wanted, build_command
from hvdkit.launch.site import find_site

_GRACE_S = 10


def run_python(ranks: int, words: Sequence[str], timeout_s: float) -> None:
    """Run `python WORDS` on `ranks` ranks of this machine, without a launcher for one.

    Raises LaunchError if it fails, with the last of what it printed, and if it takes longer than `timeout_s`.
    """
    command: tuple[str, ...] = (sys.executable, *words)
    environment = dict(os.environ)
    if ranks > 1:
        site = find_site()
        command, environment["PATH"] = build_command(Wanted(ranks, command), site), site.path
    status, printed = run_to_end(command, environment, timeout_s)
    if status:
        last = "\n".join(printed.strip().splitlines()[-8:])
        raise LaunchError(f"a job of {ranks} ranks ended with status {status}:\n{last}")


def run_to_end(words: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """Run the command `words` in a session of its own; returns its status and all that it printed.

    Raises LaunchError after `timeout_s`. Then, and when this process is interrupted, the whole job is ended: the
    launcher is asked first, since it alone knows ranks in sessions of their own.
    """
    job = subprocess.Popen(
        list(words),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = job.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        printed = _end(job)
        raise LaunchError(f"no end after {timeout_s:.0f} s: {' '.join(words)}\n{printed}") from None
    except BaseException:
        _end(job)
        raise
    return job.returncode, printed


def end_when_told() -> None:
    """From now on SIGTERM ends this program as an error does, and so its job too, and what `finally` cleans up."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _end(job: "subprocess.Popen[str]") -> str:
    printed = ""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # the leader may be gone while its children are not
            os.killpg(job.pid, number)
        try:
            printed, _ = job.communicate(timeout=_GRACE_S)
            break
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    return printed or ""
