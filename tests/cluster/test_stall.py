"""The stall check of Horovod's operations on two hosts, where it is hvdkit's: the engine does not cycle at rest."""

import re
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import Host
from tests.cluster.test_two_hosts import CONFIGS, PREFIX, run_on
from tests.jobs import succeed

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
