"""Jobs that run while a test looks at their processes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.jobs import LAUNCHERS, ROOT, clean_environ

RANKS = 2


class Job:
    """A job of RANKS ranks of `tests.security.job`, ready."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._folder = process, folder

    def processes(self) -> list[psutil.Process]:
        """The launcher and all its descendants."""
        launcher = psutil.Process(self._process.pid)
        return [launcher, *launcher.children(recursive=True)]

    def ranks(self) -> list[psutil.Process]:
        """Those that are ranks."""
        return [process for process in self.processes() if process.cmdline()[1:3] == ["-m", "tests.security.job"]]

    def listening(self, processes: Sequence[psutil.Process] | None = None) -> list[tuple[str, int]]:
        """Addresses and ports that they accept connections at."""
        return [
            (found.laddr.ip, found.laddr.port)
            for process in (self.processes() if processes is None else processes)
            for found in process.net_connections("inet")
            if found.status == psutil.CONN_LISTEN
        ]

    def end(self, timeout_s: float = 60) -> tuple[int, str]:
        """Let it come to its end; its status and what it printed."""
        (self._folder / "stop").touch()
        printed, _ = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, printed


def results(printed: str) -> list[str]:
    """What each rank said at the end; a launcher may put two in a line."""
    return sorted(re.findall(r"rank \d: \w+ \d+ wrong (?:True|\d+\.\d)", printed))


RIGHT = {
    "mpirun": [f"rank {rank}: True 0 wrong 0.0" for rank in range(RANKS)],
    "horovodrun-mpi": [f"rank {rank}: True 0 wrong 0.0" for rank in range(RANKS)],
    "horovodrun-gloo": [f"rank {rank}: True 0 wrong True" for rank in range(RANKS)],
}


@contextlib.contextmanager
def running(launcher: str, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Job]:
    """A job under `launcher`, a key of LAUNCHERS, that is ready; it is ended whatever happens."""
    words = [*LAUNCHERS[launcher], "-np", str(RANKS), sys.executable, "-m", "tests.security.job", str(folder / "stop")]
    process = subprocess.Popen(
        words, env=clean_environ(env), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("ready-*"))) < RANKS:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the job is not ready after 120 s"
            time.sleep(0.1)
        yield Job(process, folder)
    finally:
        if process.poll() is None:
            (folder / "stop").touch()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        process.wait()
