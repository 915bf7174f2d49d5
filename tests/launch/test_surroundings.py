"""`hvdkit run` in what users start it in: terminals, shells around it and around its ranks, other jobs."""

import fcntl
import os
import pty
import shlex
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.supervised import LAUNCHERS, job, left_behind, processes_named

pytestmark = [pytest.mark.launch, pytest.mark.timeout(150)]

MPIRUN = ["--launcher", "mpirun"]
NESTED = """
import os, subprocess, sys, time
inner = [sys.argv[1], "run", "-np", "1", "--gloo", "--run-name", "inner", "--", "sleep", "1000"]
subprocess.Popen(inner, stderr=subprocess.DEVNULL)
time.sleep(8)
sys.exit("the outer rank is broken")
"""


class Terminal:
    """A terminal that a program can have for its own."""

    def __init__(self) -> None:
        self.controller, self.inside = pty.openpty()
        self._is_open = True
        self.given: dict[str, Any] = {
            "stdin": self.inside, "stderr": self.inside, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        }  # fmt: skip

    def close(self) -> None:
        """Hang up."""
        if self._is_open:
            self._is_open = False
            os.close(self.inside)
            os.close(self.controller)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_what_is_typed_reaches_rank_0(launcher: str, terminal: Terminal, tmp_path: Path) -> None:
    program = ["-c", "import pathlib, sys; pathlib.Path(sys.argv[1], 'typed').write_text(input())"]
    with job(tmp_path, *LAUNCHERS[launcher], deeds=[], program=program, ranks=1, **terminal.given) as one:
        os.write(terminal.controller, b"hello\n")
        assert one.end()[0] == 0 and (tmp_path / "typed").read_text() == "hello"


def test_a_terminal_that_hangs_up_leaves_the_ranks_their_time(terminal: Terminal, tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, deeds=["save"], **terminal.given) as one:
        one.wait_for("0.0", "0.1")
        terminal.close()
        assert one.end()[0] == 75
        assert one.read("saved.0") == one.read("saved.1") == signal.SIGHUP


def test_what_is_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None}
    with job(tmp_path, *MPIRUN, deeds=["save"], **ignoring) as one:
        one.wait_for("0.0", "0.1")
        one.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        one.process.terminate()
        status, said = one.end()
        assert status == 75, said
        assert one.read("saved.0") == signal.SIGTERM


def test_nobody_has_to_listen(tmp_path: Path) -> None:
    listener, said = os.pipe()
    with job(tmp_path, *MPIRUN, "--max-restarts", "1", "--backoff", "0.1", deeds=["die", "end"], stderr=said) as one:
        os.close(said)
        os.read(listener, 1)
        os.close(listener)
        assert one.end()[0] == 0 and (tmp_path / "1.0").exists()


@pytest.mark.parametrize("variable", ["PMI_RANK", "PMIX_RANK", "HOROVOD_RANK"])
def test_the_variable_of_a_rank_in_the_shell_makes_no_rank_of_the_launcher(variable: str, tmp_path: Path) -> None:
    with job(tmp_path, *MPIRUN, deeds=["save"], environment={variable: "0"}) as one:
        one.wait_for("0.0", "0.1")
        one.process.terminate()
        status, said = one.end()
        assert status == 75, said


def test_a_rank_in_a_shell_is_told(tmp_path: Path) -> None:
    def within(*words: str) -> list[str]:
        return ["bash", "-c", f"{shlex.join(words)}; exit $?"]

    with job(tmp_path, *MPIRUN, deeds=["save"], within=within) as one:
        one.wait_for("0.0", "0.1")
        one.process.terminate()
        status, said = one.end()
        assert status == 75, said
        assert one.read("saved.0") == one.read("saved.1") == signal.SIGTERM


def test_a_job_within_a_job_ends_with_it(tmp_path: Path) -> None:
    hvdkit = Path(sys.executable).with_name("hvdkit")
    program = ["-S", "-c", NESTED, str(hvdkit)]
    with job(tmp_path, *MPIRUN, "--run-name", "outer", deeds=[], program=program, ranks=1) as one:
        deadline = time.monotonic() + 60
        while not processes_named("inner") and time.monotonic() < deadline:
            time.sleep(0.1)
        status, said = one.end()
        assert status == 1 and "the outer rank is broken" in said
        assert left_behind("inner", limit_s=30) == [] and left_behind("outer") == []
