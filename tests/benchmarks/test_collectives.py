"""A benchmark of a collective from end to end, with real peers and tiny messages; nothing of a job may stay behind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.peers import SHARED
from hvdkit.collectives import STRATEGIES
from tests.jobs import ROOT, clean_environ, is_alive, run_program, succeed

pytestmark = pytest.mark.launch

_PEERS = ["Horovod", "Open MPI", "Open MPI tuned", "Gloo"]


class _Run:
    """A benchmark under way, whose standard error is read line by line."""

    def __init__(self, collective: str, *words: str | Path) -> None:
        script = ROOT / "benchmarks" / f"bench_{collective}.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=clean_environ(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        self.processes: list[psutil.Process] = []

    def wait_for_size(self, size: str) -> None:
        """Until this size has been measured; notes all processes that there are then."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if f"{size}: " in line:
                self.processes = psutil.Process(self.process.pid).children(recursive=True)
                return
        raise AssertionError("".join(lines))

    def left(self) -> list[psutil.Process]:
        """What is still there of those processes a while later."""
        # A rank whose mpirun is gone stays a zombie where nobody reaps it.
        deadline = time.monotonic() + 20
        while (alive := [one for one in self.processes if is_alive(one.pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive


@contextmanager
def _benchmark(collective: str, *words: str | Path) -> Iterator[_Run]:
    run = _Run(collective, *words)
    try:
        yield run
    finally:
        run.process.kill()  # where the test failed; its jobs go with it
        run.process.wait()


def _record(out: str) -> dict[str, Any]:
    """The JSON line, which is the last."""
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    return record


def test_every_contender_is_measured(tmp_path: Path) -> None:
    collective, ranks = "allreduce", 2
    script = ROOT / "benchmarks" / f"bench_{collective}.py"
    result = succeed(
        run_program(
            [sys.executable, script, "--ranks", str(ranks), "--sizes", "1K", "64K", "--rounds", "2", "--out", tmp_path],
            timeout_s=240,
        )
    )
    record = _record(result.stdout)
    assert (record["benchmark"], record["ranks"]) == (collective, [ranks])
    (run,) = record["results"]
    # The one strategy that has no meaning on one machine.
    assert list(run["left_out"]) == ["hvdkit hierarchical"]
    assert "all ranks are on one node" in run["left_out"]["hvdkit hierarchical"]
    contenders = [item["contender"] for item in run["results"] if item["bytes"] > 1024]
    assert contenders[-4:] == _PEERS
    own = [*(name for name in STRATEGIES if name != "hierarchical"), SHARED]
    assert set(contenders[:-4]) == {f"hvdkit {name}" for name in own}
    assert run["reference"] == "hvdkit auto"
    assert all(item["rounds"] == 2 and 0 < item["median_s"] < 10 for item in run["results"])
    assert len(run["results"]) == 2 * len(contenders)
    # 64 MiB triads take 10 to 1000 ms on anything that runs this test
    assert 1e8 < run["triad_bytes_per_s"] < 1e13
    page = (tmp_path / f"{collective}.md").read_text()
    for text in (result.stdout, page):
        assert all(f" {name} " in text for name in contenders), text
        assert " 64 KiB " in text
    assert (tmp_path / f"{collective}.png").read_bytes().startswith(b"\x89PNG")
    assert str(ROOT) not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{collective}.md", f"{collective}.png"]


def test_a_peer_that_dies_is_left_out(tmp_path: Path) -> None:
    with _benchmark("allreduce", "--ranks", "2", "--sizes", "1K", "4M", "--rounds", "3", "--out", tmp_path) as run:
        run.wait_for_size("1 KiB")
        ranks = [process for process in run.processes if "torch_gloo.py" in " ".join(process.cmdline())]
        ranks[-1].kill()
        out, err = run.process.communicate(timeout=240)
    assert run.process.returncode == 0, err
    assert "left out: Gloo: the job ended with status" in err
    (measured,) = _record(out)["results"]
    assert set(measured["left_out"]) == {"Gloo", "hvdkit hierarchical"}
    by_size = [
        {item["contender"] for item in measured["results"] if item["bytes"] == nbytes} for nbytes in (1024, 4 * 1024**2)
    ]
    assert by_size[0] - by_size[1] == {"Gloo"}
    assert {"Horovod", "Open MPI", "Open MPI tuned"} < by_size[1]
    assert "left out: Gloo" in (tmp_path / "allreduce.md").read_text()
    assert run.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_when_it_is_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    with _benchmark("allreduce", "--ranks", "2", "--sizes", "1K", "4K", "--rounds", "900", "--out", tmp_path) as run:
        run.processes = _until_all_take_turns(psutil.Process(run.process.pid))
        run.process.send_signal(number)
        _, err = run.process.communicate(timeout=120)
    assert run.left() == [], err
    if number == signal.SIGINT:
        assert run.process.returncode == 1
        assert err.splitlines()[-1] == "interrupted: all jobs have ended"
    assert list(tmp_path.iterdir()) == []


def _until_all_take_turns(benchmark: psutil.Process) -> list[psutil.Process]:
    """The benchmark's processes, once six jobs of two ranks were started and all ranks but those of one are stopped."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        processes = benchmark.children(recursive=True)
        if sum(process.status() == psutil.STATUS_STOPPED for process in processes) >= 10:
            return processes
        time.sleep(0.1)
    raise AssertionError([(process.name(), process.status()) for process in benchmark.children(recursive=True)])
