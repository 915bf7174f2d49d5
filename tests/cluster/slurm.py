"""A small Slurm over the hosts of a cluster: munge on each, the controller on the first, a node daemon on each."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import Host
from tests.jobs import run_program, succeed

_DAEMONS = {name: f"/usr/sbin/{name}" for name in ("munged", "slurmctld", "slurmd")}
_PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so")  # where Debian's srun --mpi=pmix looks for it

# {disk} lies on each node's own disk. Every node has as many cores as its ranks need, whatever this machine has.
_CONFIG = """ClusterName=test
SlurmctldHost={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation={disk}/slurm-state
SlurmdSpoolDir={disk}/slurm-spool
TmpFS={disk}/tmp
SlurmctldLogFile={disk}/slurmctld.log
SlurmdLogFile={disk}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={names} CPUs=8 State=UNKNOWN
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""

# munged wants its folders closed to others; --force lets it go on with what pytest made.
_MUNGE = """set -e
mkdir -m 755 /run/munge
/usr/sbin/munged --force --key-file={folder}/munge.key --log-file={disk}/munged.log --seed-file={disk}/munge.seed"""


def why_no_slurm() -> str:
    """Why this machine cannot have a Slurm; empty if it can."""
    missing = [name for name, path in _DAEMONS.items() if not Path(path).exists()]
    missing += [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    missing += [] if _PMIX.exists() else ["libpmix"]
    remedy = "apt-get install -y slurmctld slurmd slurm-client munge libpmix-dev"
    return f"{', '.join(missing)} missing: {remedy}" if missing else ""


@contextmanager
def slurm(hosts: Sequence[Host], folder: Path) -> Iterator[Path]:
    """Slurm with `hosts` as nodes until the block ends; yields what SLURM_CONF must name. `folder` is an empty one."""
    disk = hosts[0].folder / "disk"
    config = folder / "slurm.conf"
    names = ",".join(host.name for host in hosts)
    config.write_text(_CONFIG.format(disk=disk, first=hosts[0].name, names=names))
    (folder / "munge.key").write_bytes(b"only for this test" * 64)
    (folder / "munge.key").chmod(0o600)
    daemons: list[tuple[Host, str]] = [(host, "munged") for host in hosts]
    try:
        for host in hosts:
            succeed(run_program(host.enter("sh", "-c", _MUNGE.format(folder=folder, disk=disk))))
        for host, name in [(hosts[0], "slurmctld"), *((host, "slurmd") for host in hosts)]:
            daemons.append((host, name))
            succeed(run_program(host.enter("env", f"SLURM_CONF={config}", _DAEMONS[name])))
        _wait_until_idle(hosts, config)
        yield config
    finally:
        for host, name in reversed(daemons):
            for process in host.processes(name):
                process.kill()


def _wait_until_idle(hosts: Sequence[Host], config: Path, limit_s: float = 60) -> None:
    command = hosts[0].enter("env", f"SLURM_CONF={config}", "sinfo", "--noheader", "--format=%T %D")
    deadline = time.monotonic() + limit_s
    while (state := run_program(command).stdout.strip()) != f"idle {len(hosts)}":
        assert time.monotonic() < deadline, f"Slurm's nodes are not ready: {state}"
        time.sleep(0.5)
