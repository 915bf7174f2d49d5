"""A job whose ranks each write down what they measured, and its limits in time.

The driver starts the ranks through a launcher, in a session of their own, and reads one JSON file of each rank when
they are done. Past its time, or when the driver is interrupted, the whole job is ended: the launcher is asked first,
since it alone knows ranks in sessions of their own.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.job import launch_environment
from hvdkit.runtime.launcher import launch_info

_GRACE_S = 10


class JobError(Exception):
    """A job ended badly, or not in time; the message has what it printed."""


def run_job(
    command: Sequence[str | Path], ranks: int, *, env: Mapping[str, str] | None = None, timeout_s: float = 600
) -> list[Any]:
    """Run `command` and a last word, the folder into which each rank calls `report`; returns the reports by rank.

    Raises JobError when the job fails, takes longer than `timeout_s`, or a rank reports nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [str(word) for word in (*command, folder)]
        status, printed = run_to_end(words, env=env, timeout_s=timeout_s)
        paths = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        missing = [path.stem for path in paths if not path.exists()]
        if status or missing:
            silent = f", nothing from ranks {', '.join(missing)}" if missing else ""
            raise JobError(f"status {status}{silent}: {' '.join(words)}\n{printed}")
        return [json.loads(path.read_text()) for path in paths]


def run_to_end(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 600
) -> tuple[int, str]:
    """Run the command `words`; returns its status and all that it printed. Raises JobError after `timeout_s`."""
    job = subprocess.Popen(
        words,
        env=launch_environment(env),
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
        raise JobError(f"no end after {timeout_s:.0f} s: {' '.join(words)}\n{printed}") from None
    except BaseException:
        _end(job)
        raise
    return job.returncode, printed


def report(folder: Path, measured: Any) -> None:
    """Write down what this rank measured (plain values)."""
    put(folder / f"{launch_info().rank}.json", measured)


def put(path: Path, measured: Any) -> None:
    """Write `measured` (plain values) into `path`, which is there when it is whole."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(measured))
    beside.rename(path)


def on_this_machine(ranks: int, script: str, *words: str) -> list[str]:
    """The command that runs `python SCRIPT WORDS` on `ranks` ranks here, as `horovodrun` starts them: not bound."""
    return ["horovodrun", "--disable-cache", "-np", str(ranks), sys.executable, script, *words]


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
