"""A job whose ranks each write down what they measured, and its limits in time.

The driver starts the ranks through a launcher and reads one JSON file of each rank when they are done. Past its time,
or when the driver is interrupted, the whole job is ended.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.job import launch_environment
from hvdkit.errors import LaunchError
from hvdkit.launch import job
from hvdkit.runtime.launcher import launch_info


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
    try:
        return job.run_to_end(words, launch_environment(env), timeout_s)
    except LaunchError as error:
        raise JobError(str(error)) from None


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
