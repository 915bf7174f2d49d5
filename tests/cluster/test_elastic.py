"""An elastic job over three hosts: every process of one is killed, another joins, and every sample counts once."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import cluster, why_not
from tests.elastic.jobs import Plan, check, command, ends
from tests.jobs import run_program, succeed

pytestmark = [pytest.mark.hosts, pytest.mark.launch]


def test_a_host_dies_in_the_middle_of_a_step_and_another_joins(tmp_path: Path) -> None:
    if why_not():
        pytest.skip(why_not())
    machines, folder = tmp_path / "machines", tmp_path / "job"
    machines.mkdir()
    folder.mkdir()
    plan = Plan(kills={8: "node2.0"}, waits_for_killer=True, hosts={16: "node1:1\nnode2:1\nnode3:1\n"})
    words = command(folder, plan, "node1:1\nnode2:1\n", workers=2)
    with cluster(machines, ["node1", "node2", "node3"]) as hosts, ThreadPoolExecutor() as threads:
        job = threads.submit(run_program, hosts[0].enter(*words), timeout_s=240)
        while not (folder / "killed.8").exists() and not job.done():
            time.sleep(0.1)
        for process in hosts[1].processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        succeed(job.result())
    assert sorted(ends(folder)) == ["node1.0", "node3.0"]
    sizes = check(folder, plan)
    assert sizes[:6] == [2] * 6 and sizes[6:16] == [1] * 10 and set(sizes[16:]) == {2}
