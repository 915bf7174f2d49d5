"""The stall check on two hosts: of Horovod's operations it is hvdkit's, since the engine does not cycle at rest."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Host
from tests.cluster.link import cut
from tests.cluster.test_two_hosts import CONFIGS, PREFIX, run_on
from tests.jobs import clean_environ, succeed

pytestmark = [pytest.mark.hosts, pytest.mark.launch]

SCRIPT = Path(__file__).with_name("late.py")


def test_the_rank_that_has_not_come_and_the_tensor_are_named(hosts: list[Host]) -> None:
    """The hosts have two ranks and one: rank 1 has no counterpart on the other."""
    environment = ["env", f"OMPI_MCA_mca_base_param_files={CONFIGS}/two_hosts_ethernet.conf"]
    launch = ["mpirun", *PREFIX, "-H", "node1:2,node2:1", "-x", "PATH", "-x", "HOROVOD_STALL_CHECK_TIME_SECONDS=1"]
    result = succeed(run_on(hosts[0], *environment, *launch, sys.executable, SCRIPT, "2.5"))
    said = re.findall(r"rank (\d) of 3 has waited \d+ s in allreduce (.*)", result.stderr)
    wanted = [("0", f"'{name}' (horovod): rank 2 has not come") for name in ("awaited", "begun")]
    assert sorted(set(said)) == wanted, result.stderr
    assert result.stdout.count("worked to the end") == 3


LIMIT_S = 10
"""More than ranks come apart by at their start, on a machine that is busy with other things."""


def ranks_on(host: Host, mark: Path) -> list[psutil.Process]:
    """The processes that run the script; `mark` is a word of their command line."""
    found = []
    for process in host.processes():
        with suppress(psutil.Error):
            if sys.executable in process.cmdline()[:1] and str(mark) in process.cmdline():
                found.append(process)
    return found


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun --gloo"])
def test_both_sides_of_a_cut_network_end(hosts: list[Host], tmp_path: Path, launcher: str) -> None:
    """The ranks do; mpirun by itself keeps on looking for its other half (see mpi_configs/two_hosts_ethernet.conf)."""
    launch: list[str | Path] = ["horovodrun", "--gloo", "-np", "2", "-H", "node1:1,node2:1"]
    if launcher == "mpirun":
        settings = f"OMPI_MCA_mca_base_param_files={CONFIGS}/two_hosts_ethernet.conf"
        launch = ["env", settings, "mpirun", *PREFIX, "-H", "node1:1,node2:1", "-x", "PATH"]
    command = hosts[0].enter(*launch, sys.executable, SCRIPT.with_name("endless.py"), tmp_path, str(LIMIT_S))
    with (tmp_path / "printed").open("w") as printed:
        job = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, env=clean_environ(), start_new_session=True
        )
    try:
        deadline_s = time.monotonic() + 100
        while not all((tmp_path / f"rank{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < deadline_s and job.poll() is None, (tmp_path / "printed").read_text()
            time.sleep(0.1)
        assert all(ranks_on(host, tmp_path) for host in hosts)
        with cut(hosts):
            deadline_s = time.monotonic() + LIMIT_S + 30  # 4 s more than the limit on a machine that does nothing else
            while any(ranks_on(host, tmp_path) for host in hosts):
                assert time.monotonic() < deadline_s, (tmp_path / "printed").read_text()
                time.sleep(0.2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    said = (tmp_path / "printed").read_text()
    missing = r"rank 1 has not come \(rank 1 does not answer: ended, stopped or hung\)"
    assert re.search(rf"hvdkit: rank 0 of 2 failed, the job ends: it has waited \d+ s in .*: {missing}", said), said
