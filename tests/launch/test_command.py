"""The command line for each kind of site, compared with what its launcher takes."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hvdkit.errors import LaunchError
from hvdkit.launch.command import Wanted, build_command
from hvdkit.launch.hosts import parse_hosts
from hvdkit.launch.mpi_launcher import MpiLauncher
from hvdkit.launch.site import Site

OPEN_MPI = MpiLauncher("/usr/bin/mpirun", "openmpi", "mpirun (Open MPI) 4.1.8", (4, 1))
OPEN_MPI_5 = MpiLauncher("/usr/bin/mpirun", "openmpi", "mpirun (Open MPI) 5.0.11", (5, 0))
HYDRA = MpiLauncher("/usr/bin/mpirun", "hydra", "HYDRA 5.0.2", (5, 0))
SITE = Site(mpi=OPEN_MPI, horovodrun="/env/bin/horovodrun", path="/env/bin:/usr/bin", is_root=False, exported=("PATH",))
KEEPALIVE = "--mca oob_tcp_keepalive_time 20 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 3"
WHEEL = replace(SITE, prefix=Path("/env"))
TWO_HOSTS = parse_hosts("node1:2,node2:2")
HERE = Wanted(4, ("python", "t.py"))
THERE = replace(HERE, hosts=TWO_HOSTS)


@pytest.mark.parametrize(
    ("wanted", "site", "line"),
    [
        pytest.param(HERE, SITE, "horovodrun --disable-cache -np 4", id="default"),
        pytest.param(
            THERE,
            WHEEL,
            f"horovodrun --disable-cache -np 4 -H node1:2,node2:2 '--mpi-args=--prefix /env {KEEPALIVE}'",
            id="the wheel's prefix on other hosts",
        ),
        pytest.param(
            replace(THERE, interface="eth0"),
            SITE,
            f"horovodrun --disable-cache -np 4 -H node1:2,node2:2 --network-interface eth0 '--mpi-args={KEEPALIVE}'",
            id="interface",
        ),
        pytest.param(
            replace(THERE, gloo=True), WHEEL, "horovodrun --gloo --disable-cache -np 4 -H node1:2,node2:2", id="Gloo"
        ),
        pytest.param(
            HERE,
            replace(SITE, mpi=OPEN_MPI_5),
            "horovodrun --disable-cache -np 4 '--binding-args=--bind-to none'",
            id="Open MPI 5",
        ),
        pytest.param(
            HERE, replace(SITE, horovodrun=None), "mpirun -np 4 --oversubscribe --bind-to none", id="no horovodrun"
        ),
        pytest.param(
            replace(HERE, launcher="mpirun"),
            replace(WHEEL, is_root=True),
            "mpirun --allow-run-as-root -np 4 --oversubscribe --bind-to none",
            id="root",
        ),
        pytest.param(
            replace(THERE, launcher="mpirun", interface="eth0"),
            WHEEL,
            f"mpirun -np 4 -H node1:2,node2:2 --prefix /env {KEEPALIVE} -x PATH --bind-to none "
            "--mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 -x NCCL_SOCKET_IFNAME=eth0",
            id="mpirun on hosts",
        ),
        pytest.param(
            HERE, replace(SITE, allocated_nodes=2), "mpirun -np 4 --bind-to none", id="Slurm allocation of 2 nodes"
        ),
        pytest.param(
            HERE, replace(SITE, allocated_nodes=1), "horovodrun --disable-cache -np 4", id="Slurm allocation of 1 node"
        ),
        pytest.param(HERE, replace(SITE, mpi=HYDRA), "mpiexec -n 4", id="MPICH"),
        pytest.param(
            replace(THERE, interface="eth0"),
            replace(SITE, mpi=HYDRA),
            "mpiexec -n 4 -hosts node1:2,node2:2 -iface eth0",
            id="MPICH on hosts",
        ),
    ],
)
def test_line(wanted: Wanted, site: Site, line: str) -> None:
    assert shlex.join(build_command(wanted, site)) == f"{line} python t.py"


@pytest.mark.parametrize(
    ("wanted", "site", "said"),
    [
        pytest.param(replace(THERE, ranks=5), SITE, "-np 5 is more than the 4 slots of node1:2,node2:2", id="slots"),
        pytest.param(
            HERE, replace(SITE, allocated_nodes=2, allocated_tasks=3), "more than the 3 tasks of this Slurm", id="tasks"
        ),
        pytest.param(replace(HERE, ranks=0), SITE, "at least 1 rank", id="no ranks"),
        pytest.param(HERE, replace(SITE, mpi=None), "no mpirun; install an MPI", id="no MPI"),
        pytest.param(replace(HERE, launcher="mpirun"), replace(SITE, mpi=None), "no mpirun", id="mpirun without MPI"),
        pytest.param(replace(HERE, gloo=True), replace(SITE, horovodrun=None), "hvdkit horovod build", id="no Horovod"),
        pytest.param(replace(HERE, gloo=True, launcher="mpirun"), SITE, "--gloo needs horovodrun", id="Gloo, mpirun"),
        pytest.param(
            replace(HERE, launcher="horovodrun"), replace(SITE, mpi=HYDRA), "does not work with this MPI", id="MPICH"
        ),
        pytest.param(
            HERE, replace(SITE, mpi=MpiLauncher("/opt/x/mpirun", "unknown", "X 1")), "does not know", id="other MPI"
        ),
    ],
)
def test_what_cannot_be_met(wanted: Wanted, site: Site, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        build_command(wanted, site)


def test_gloo_needs_no_mpi() -> None:
    assert build_command(replace(HERE, gloo=True), replace(SITE, mpi=None))[:2] == ("horovodrun", "--gloo")
