"""`hvdkit run --max-restarts` over two hosts: it goes on with those that answer, and leaves nothing on either."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Host
from tests.jobs import run_program, succeed
from tests.launch.supervised import COMMUNICATING, LAUNCHERS, Job, job, left_behind, told

pytestmark = [pytest.mark.hosts, pytest.mark.launch, pytest.mark.timeout(280)]

ON_BOTH = ["-H", "node1:2,node2:2", "--max-restarts", "2", "--backoff", "0.2"]
FOUR = [f"0.{rank}" for rank in range(4)]


@contextmanager
def silent(host: Host) -> Iterator[None]:
    """Its sshd answers nobody, while what it started goes on."""
    os.kill(host.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.pid, signal.SIGCONT)


def supervisor(host: Host) -> psutil.Process:
    (found,) = (process for process in host.processes() if process.cmdline()[1:3][-1:] == ["run"])
    return found


def hosts_of(one: Job, attempt: int) -> list[str]:
    """Where the ranks of an attempt were, in their order."""
    return [one.read(path.name)["host"] for path in sorted(one.folder.glob(f"{attempt}.[0-9]"))]


def nothing_is_left(hosts: list[Host], name: str) -> None:
    assert left_behind(name, limit_s=10) == []
    for host in hosts:
        assert succeed(run_program(host.enter("ls", "/dev/shm"))).stdout == ""


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun --gloo"])
def test_a_host_that_does_not_answer_is_left_out(launcher: str, hosts: list[Host], tmp_path: Path) -> None:
    options = [*LAUNCHERS[launcher], *ON_BOTH, "--min-np", "2"]
    with job(tmp_path, *options, deeds=["cue:3", "end"], ranks=4, on=hosts[0].enter) as one:
        one.wait_for(*FOUR)
        with silent(hosts[1]):
            (tmp_path / "cue").touch()
            status, said = one.end(150)
        assert status == 0, said
        assert any(line.startswith("node2 is left out: ssh does not reach it: ") for line in told(said)), said
        assert hosts_of(one, 0) == ["node1", "node1", "node2", "node2"] and hosts_of(one, 1) == ["node1", "node1"]
        assert "nobody could look what is left of the job on node2" in told(said)
        if launcher == "mpirun":  # its daemon ended the ranks there; over Gloo they wait for ever
            nothing_is_left(hosts, next(iter(one.run_names)))


def test_all_ranks_are_waited_for_and_come_back(hosts: list[Host], tmp_path: Path) -> None:
    with job(tmp_path, *ON_BOTH, deeds=["cue:2", "end"], ranks=4, on=hosts[0].enter) as one:
        one.wait_for(*FOUR)
        assert one.process.stderr is not None
        with silent(hosts[1]):
            (tmp_path / "cue").touch()
            assert any(
                "waiting up to 10 min 0 s for room for 4 ranks (--min-np)" in line for line in one.process.stderr
            )
        status, said = one.end(150)
        assert status == 0, said
        assert hosts_of(one, 1) == hosts_of(one, 0) == ["node1", "node1", "node2", "node2"]
        nothing_is_left(hosts, next(iter(one.run_names)))


def test_a_killed_mpirun_leaves_nothing_on_either_host(hosts: list[Host], tmp_path: Path) -> None:
    options = [*LAUNCHERS["mpirun"], *ON_BOTH, "--network-interface", "eth0"]
    with job(tmp_path, *options, deeds=["go on"], program=COMMUNICATING, ranks=4, on=hosts[0].enter) as one:
        one.wait_for(*FOUR, limit_s=120)
        assert all(len(one.read(name)["segments"]) >= 2 for name in FOUR)
        (mpirun,) = (process for process in hosts[0].processes() if process.ppid() == supervisor(hosts[0]).pid
                     and "-np" in process.cmdline())  # fmt: skip
        mpirun.kill()
        status, said = one.end(150)
        assert status == 0, said
        assert any(line.startswith("attempt 0 ended with status 137 (SIGKILL)") for line in told(said)), said
        nothing_is_left(hosts, next(iter(one.run_names)))


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun --gloo"])
def test_ranks_on_both_hosts_save_when_told_to_end(launcher: str, hosts: list[Host], tmp_path: Path) -> None:
    with job(tmp_path, *LAUNCHERS[launcher], *ON_BOTH, deeds=["save"], ranks=4, on=hosts[0].enter) as one:
        one.wait_for(*FOUR)
        supervisor(hosts[0]).terminate()
        status, said = one.end()
        assert status == 75, said
        assert [one.read(f"saved.{rank}") for rank in range(4)] == [signal.SIGTERM] * 4
        nothing_is_left(hosts, next(iter(one.run_names)))
        assert re.search(r"--resume-run \S+$", said.strip())


def test_ranks_on_both_hosts_do_not_outlive_a_killed_supervisor(hosts: list[Host], tmp_path: Path) -> None:
    with job(tmp_path, *ON_BOTH, deeds=["wait"], ranks=4, on=hosts[0].enter) as one:
        one.wait_for(*FOUR)
        supervisor(hosts[0]).kill()
        deadline = time.monotonic() + 60
        while any(host.processes() for host in hosts) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [host.processes() for host in hosts] == [[], []]
        nothing_is_left(hosts, next(iter(one.run_names)))
