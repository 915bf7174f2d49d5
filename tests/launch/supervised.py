"""A supervised job of a test: `hvdkit run` with ranks that do as they are told, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.jobs import BIN, ROOT, clean_environ

RANK = ["-S", str(Path(__file__).with_name("attempt.py"))]
COMMUNICATING = [str(Path(__file__).with_name("communicating.py"))]
PLAIN_SHELL = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
LAUNCHERS = {"mpirun": ["--launcher", "mpirun"], "horovodrun": [], "horovodrun --gloo": ["--gloo"]}


@dataclass
class Job:
    """A started `hvdkit run`, whose ranks write into `folder`."""

    process: "subprocess.Popen[str]"
    folder: Path

    def wait_for(self, *names: str, limit_s: float = 60) -> None:
        """Wait until the ranks have written these files."""
        deadline = time.monotonic() + limit_s
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline and self.process.poll() is None, f"{names}: {self.end(5)}"
            time.sleep(0.05)

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def end(self, limit_s: float = 90) -> tuple[int, str]:
        """Its status and what it said (on stderr)."""
        try:
            _, said = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end after {limit_s} s: {self.process.communicate()}") from None
        return self.process.returncode, said or ""

    @property
    def run_names(self) -> set[str]:
        return {self.read(path.name)["name"] for path in self.folder.glob("[0-9].[0-9]")}


@contextmanager
def job(
    folder: Path,
    *options: str,
    deeds: list[str],
    program: Sequence[str] = RANK,
    ranks: int = 2,
    on: Callable[..., list[str]] = lambda *words: list(words),
    within: Callable[..., list[str]] = lambda *words: list(words),
    environment: Mapping[str, str] | None = None,
    **popen: Any,
) -> Iterator[Job]:
    """`hvdkit run OPTIONS` of ranks that do `deeds`, one per attempt.

    `on` makes it a command for another host, `within` makes of a rank's command another.
    """
    rank = within(*(str(word) for word in ["python", *program, folder, *deeds]))
    words = on(*(str(word) for word in [BIN / "hvdkit", "run", "-np", ranks, *options, "--", *rank]))
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=clean_environ(PLAIN_SHELL) | dict(environment or {}),
        text=True,
        errors="replace",
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **popen},
    )
    started = Job(process, folder)
    try:
        yield started
    finally:
        names = started.run_names
        if process.poll() is None:
            process.kill()
        process.communicate()
        for pid in [pid for name in names for pid in processes_named(name)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def told(said: str) -> list[str]:
    """The supervisor's own lines, without the command lines, and with every time and name cut out."""
    lines = [line.removeprefix("hvdkit run: ") for line in said.splitlines() if line.startswith("hvdkit run: ")]
    lines = [line for line in lines if not line.startswith("PATH=")]
    return [re.sub(r"\d{8}-\d{6}-\w{6}", "NAME", re.sub(r"\b[\d.]+ (s|min \d+ s)\b", "T", line)) for line in lines]


def processes_named(run_name: str) -> list[int]:
    """Living processes with that name in their environment, found without the code under test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            entries = (entry / "environ").read_bytes().split(b"\0")
            if f"HVDKIT_RUN_NAME={run_name}".encode() in entries:
                found.append(int(entry.name))
    return found


def left_behind(run_name: str, limit_s: float = 0) -> list[str]:
    """Processes and folders of a job that are still there after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        found = [f"process {pid}" for pid in processes_named(run_name)]
        found += [str(path) for path in Path(tempfile.gettempdir()).glob(f"*{run_name}*")]
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(0.1)
