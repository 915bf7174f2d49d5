"""A place of its own: what runs in it ends with it, and what it leaves in shared memory is seen."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs import ROOT, clean_environ

pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

PROGRAM = """
import sys
from tests.faults import place
place.go_there("timeit", ["-n1", "-r1", sys.argv[1]])
sys.exit("no place of its own")
"""


def start(statement: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, statement], env=clean_environ(), cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def living(mark: str, but: int) -> list[int]:
    """Processes that have `mark` on their command line."""
    found = psutil.process_iter(["cmdline", "pid"])
    return [item.pid for item in found if item.pid != but and any(mark in word for word in item.info["cmdline"] or ())]


def wait_until(how_many: bool, mark: str, but: int) -> None:
    deadline = time.monotonic() + 60
    while bool(living(mark, but)) != how_many:
        assert time.monotonic() < deadline, living(mark, but)
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_runs_there_ends_with_it(number: signal.Signals) -> None:
    mark = secrets.token_hex(8)
    outer = start(f"import time; time.sleep(300)  # {mark}")
    wait_until(True, mark, outer.pid)
    outer.send_signal(number)
    outer.communicate(timeout=60)
    wait_until(False, mark, outer.pid)


def test_its_shared_memory_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    code = (
        "from pathlib import Path; from tests.faults import place; Path('/dev/shm/one').write_text('1'); "
        f"Path({str(path)!r}).write_text(str(place.shared_memory_left()))"
    )
    outer = start(code)
    out, err = outer.communicate(timeout=120)
    assert outer.returncode == 0, out + err
    assert path.read_text() == "['/dev/shm/one left']"
    assert not Path("/dev/shm/one").exists()
