"""A Slurm cluster of one node: munged, slurmctld and slurmd of our own, ended by their process numbers."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "sinfo")
_PMIX = "/usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so"

_CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster; its programs find it through `environ`."""

    environ: dict[str, str]


def missing_programs() -> list[str]:
    """What keeps a cluster from running here; empty if nothing does."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return lacking + ([] if Path(_PMIX).exists() else ["libpmix-dev"]) + ([] if os.geteuid() == 0 else ["root"])


@contextmanager
def one_node_cluster(folder: Path) -> Iterator[Slurm]:
    """Start the daemons, wait until the node is idle, and end them afterwards."""
    (folder / "spool").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    values = {"folder": folder, "host": socket.gethostname(), "ports": _free_ports(2)}
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(**values))
    (folder / "cgroup.conf").touch()
    environ = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    files = {name: f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")}
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.socket",
         *files.values()],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]  # fmt: skip
    running = []
    try:
        for words in daemons:
            with (folder / f"{words[0]}.out").open("w") as out:
                running.append(subprocess.Popen(words, env={**os.environ, **environ}, stdout=out, stderr=out,
                                                start_new_session=True))  # fmt: skip
            time.sleep(0.5)
        _wait_until_idle(folder, environ)
        yield Slurm(environ)
    finally:
        for daemon in reversed(running):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()


def _wait_until_idle(folder: Path, environ: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        asked = subprocess.run(["sinfo", "--noheader", "--format=%t"], env={**os.environ, **environ}, timeout=60,
                               capture_output=True, text=True, check=False)  # fmt: skip
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in folder.glob("*.log"))
    raise AssertionError(f"the cluster did not come up within 60 s\n{logs}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
