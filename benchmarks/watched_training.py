"""Runs `hvdkit.train` as a user does, and watches it: its own time per step, or from outside the ranks' memory."""

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from benchmarks.job import launch_environment
from benchmarks.measured_job import JobError, on_this_machine, run_to_end

_PERIOD_S = 0.02


def start_train(ranks: int, words: Sequence[str]) -> list[str]:
    """The command that trains with the options `words` on `ranks` ranks here."""
    if ranks == 1:
        return [sys.executable, "-m", "hvdkit.train", *words]
    return on_this_machine(ranks, "-m", "hvdkit.train", *words)


def measure_step_s(command: Sequence[str]) -> float:
    """The mean step, in seconds, that the run says at its end. Raises JobError if it fails."""
    status, printed = run_to_end(list(command))
    found = re.search(r"([\d,]+) ms a step", printed)
    if status or not found:
        raise JobError(f"status {status}: {' '.join(command)}\n{printed}")
    return float(found[1].replace(",", "")) / 1e3


def measure_peak_bytes(command: Sequence[str], ranks: int, steps: int) -> list[int]:
    """Of each rank the largest proportional set size seen until step `steps` is done (what is saved then is not
    training). Raises JobError if the run fails.
    """
    with tempfile.TemporaryFile("w+") as errors:
        job = subprocess.Popen(
            list(command), env=launch_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=errors, text=True,
        )  # fmt: skip
        is_done = threading.Event()
        printed: list[str] = []
        reader = threading.Thread(target=_read, args=(job, f"step {steps}/{steps}", printed, is_done), daemon=True)
        reader.start()
        peaks: dict[int, int] = {}
        while not is_done.is_set():
            for process in _ranks_of(job.pid, is_alone=ranks == 1):
                pss = _read_pss(process)
                peaks[process.pid] = max(peaks.get(process.pid, 0), pss)
            time.sleep(_PERIOD_S)
        status = job.wait()
        reader.join()
        if status or len(peaks) != ranks:
            errors.seek(0)
            text = "".join(printed) + errors.read()
            raise JobError(f"status {status}, {len(peaks)} ranks seen: {' '.join(command)}\n{text}")
    return list(peaks.values())


def _read(job: "subprocess.Popen[str]", last: str, printed: list[str], is_done: threading.Event) -> None:
    assert job.stdout is not None
    for line in job.stdout:
        printed.append(line)
        if last in line:
            is_done.set()
    is_done.set()


def _ranks_of(pid: int, *, is_alone: bool) -> list[psutil.Process]:
    """The ranks among the launcher's descendants: those that know their rank."""
    found = []
    with suppress(psutil.NoSuchProcess):
        job = psutil.Process(pid)
        for process in [job] if is_alone else job.children(recursive=True):
            with suppress(psutil.Error):
                if is_alone or "OMPI_COMM_WORLD_RANK" in process.environ():
                    found.append(process)
    return found


def _read_pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
