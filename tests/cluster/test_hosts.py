"""The hosts themselves: apart where real ones are, and gone when whoever made them is gone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Host, why_not
from tests.jobs import ROOT, clean_environ, run_program, succeed

pytestmark = [pytest.mark.hosts, pytest.mark.launch]

_HOLD = """
import json, sys, time
from pathlib import Path
from tests.cluster.hosts import cluster
with cluster(Path(sys.argv[1]), ["alpha", "beta"]) as hosts:
    print(json.dumps([host.pid for host in hosts]), flush=True)
    time.sleep(60)
"""


def test_hosts_are_apart(hosts: list[Host]) -> None:
    script = 'hostname; echo mine > /dev/shm/file; echo mine > $HOME/file; ssh node2 "hostname; ls /dev/shm $HOME"'
    lines = succeed(run_program(hosts[0].enter("sh", "-c", script))).stdout.split()
    assert lines[:2] == ["node1", "node2"] and "file" not in lines
    assert (hosts[0].disk / "home" / "file").exists() and not Path("/dev/shm/file").exists()
    succeed(run_program(hosts[0].enter("rm", "/dev/shm/file")))  # other tests want it empty


def test_nothing_is_left_when_their_maker_is_killed(tmp_path: Path) -> None:
    if why_not():
        pytest.skip(why_not())
    before = links()
    maker = subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environ()
    )
    assert maker.stdout is not None
    firsts = [psutil.Process(pid) for pid in json.loads(maker.stdout.readline())]
    assert links() == before
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    gone, alive = psutil.wait_procs(firsts, timeout=20)
    assert len(gone) == 2 and not alive
    deadline = time.monotonic() + 10
    while (left := commands_with(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def links() -> list[str]:
    """This machine's own network interfaces."""
    return sorted(psutil.net_if_addrs())


def commands_with(folder: Path) -> list[str]:
    """Command lines of this machine's processes that name `folder`."""
    commands = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]
