"""A job that fails, hangs or says nothing is an error with what it printed, and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measured_job import JobError, on_this_machine, run_job
from tests.jobs import ROOT, clean_environ, is_alive

pytestmark = pytest.mark.launch

REPORT = """
import sys
from pathlib import Path
from benchmarks.measured_job import report
report(Path(sys.argv[-1]), {"words": sys.argv[1:-1]})
"""
HANG = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "100"])
print("child", child.pid, flush=True)
time.sleep(100)
"""


def test_reports_come_back() -> None:
    assert run_job([sys.executable, "-c", REPORT, "a", "b"], 1) == [{"words": ["a", "b"]}]


@pytest.mark.parametrize(
    "program, ranks, what",
    [("print('no luck'); raise SystemExit(3)", 1, "status 3"), (REPORT, 2, "nothing from ranks 1")],
)
def test_a_bad_end_is_an_error(program: str, ranks: int, what: str) -> None:
    with pytest.raises(JobError, match=what) as caught:
        run_job([sys.executable, "-c", program], ranks)
    assert ("no luck" in str(caught.value).splitlines()) == ("no luck" in program)


def test_a_job_that_hangs_is_killed_with_its_children() -> None:
    start = time.monotonic()
    with pytest.raises(JobError, match="no end after 5 s") as caught:
        run_job([sys.executable, "-c", HANG], 1, timeout_s=5)
    assert time.monotonic() - start < 30
    child = int(str(caught.value).split("child ")[-1].split()[0])
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(child)


def test_a_driver_that_is_told_to_end_ends_its_job(tmp_path: Path) -> None:
    launched = on_this_machine(2, "-c", f"import os, time; open(f'{tmp_path}/{{os.getpid()}}', 'w'); time.sleep(100)")
    imports = "from benchmarks.measured_job import run_job; from hvdkit.launch.job import end_when_told"
    program = f"{imports}; end_when_told(); run_job({launched!r}, 2)"
    driver = subprocess.Popen([sys.executable, "-c", program], env=clean_environ(), cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(ranks := [int(path.name) for path in tmp_path.iterdir()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(ranks) == 2 and all(map(is_alive, ranks))
    driver.terminate()
    assert driver.wait(30) == 128 + signal.SIGTERM
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, ranks))
