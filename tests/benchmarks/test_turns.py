"""Jobs that take turns: who runs when, and what becomes of a job that fails. Real processes, no launcher needed."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.turns import MARK, Job, JobFailedError, running
from tests.jobs import is_alive

pytestmark = pytest.mark.launch

_BEGIN = f"""
import json, os, sys, time
def answer(what): print({MARK!r} + json.dumps(what), flush=True)
print("a library's greeting", flush=True)
answer({{"pids": [os.getpid()], "contenders": ["one"]}})
"""
_ECHO = "for line in sys.stdin: answer({'answer': json.loads(line)['do']})"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Job]]:
    """Start a job of one process that runs this text after it has said who it is."""
    with running() as jobs:

        def _start(text: str) -> Job:
            script = tmp_path / f"job{len(jobs)}.py"
            script.write_text(_BEGIN + text)
            jobs.append(Job(script.stem, [sys.executable, str(script)], os.environ))
            jobs[-1].wait_until_ready(30)
            return jobs[-1]

        yield _start


def _state_becomes(pid: int, states: set[str]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if psutil.Process(pid).status() in states:
            return True
        time.sleep(0.01)
    return False


def test_a_job_runs_in_its_turn_only(start: Callable[[str], Job]) -> None:
    jobs = [start(_ECHO), start(_ECHO)]
    pids = [job.hello["pids"][0] for job in jobs]
    for turn in (0, 1, 0):
        with jobs[turn].turn():
            assert jobs[turn].ask({"do": f"turn {turn}"}, 30) == {"answer": f"turn {turn}"}
            assert psutil.Process(pids[turn]).status() != psutil.STATUS_STOPPED
            assert _state_becomes(pids[1 - turn], {psutil.STATUS_STOPPED})
        assert _state_becomes(pids[turn], {psutil.STATUS_STOPPED})


def test_a_stopped_job_ends_by_itself_when_dismissed(start: Callable[[str], Job], tmp_path: Path) -> None:
    job = start(f"{_ECHO}\nopen({str(tmp_path / 'left')!r}, 'w').write('in order')")
    job.end()
    assert not is_alive(job.hello["pids"][0])
    assert (tmp_path / "left").read_text() == "in order"


def test_a_job_that_ends_is_told_with_what_it_printed(start: Callable[[str], Job]) -> None:
    job = start("sys.stdin.readline(); sys.exit('the disk is full')")
    with pytest.raises(JobFailedError, match=r"ended with status 1\n.*greeting\n.*the disk is full"), job.turn():
        job.ask({"do": "time"}, 30)
    with pytest.raises(JobFailedError, match="ended with status 1"), job.turn():
        job.ask({"do": "time"}, 30)


def test_a_job_that_hangs_is_told_and_ended_by_force(start: Callable[[str], Job]) -> None:
    job = start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)")
    with pytest.raises(JobFailedError, match="did not answer within 0 s"), job.turn():
        job.ask({"do": "time"}, 0.2)
    job.end(patience_s=0.2)
    assert not is_alive(job.hello["pids"][0])


def test_sigterm_ends_the_jobs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    (tmp_path / "job.py").write_text(_BEGIN + _ECHO)
    program.write_text(f"""
import os, signal, sys
from benchmarks.turns import Job, running
with running() as jobs:
    jobs.append(Job("one", [sys.executable, {str(tmp_path / "job.py")!r}], os.environ))
    jobs[0].wait_until_ready(30)
    print(jobs[0].hello["pids"][0], flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
""")
    root = Path(__file__).parents[2]
    process = psutil.Popen([sys.executable, str(program)], stdout=-1, text=True, env={**os.environ, "PYTHONPATH": root})
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + 15
    assert not is_alive(int(out))
