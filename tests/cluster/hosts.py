"""Several hosts on this machine, joined by a network of their own: Linux namespaces, a bridge, an sshd in each.

A host is one process tree in its own network, mount, host name, IPC and process namespaces. What Open MPI takes for the
mark of a machine is its own: host name, /dev/shm, System V IPC, and the interface eth0, whose name is the same on all.
`disk` in the cluster's folder is the same path on every host with other contents behind it, like the local disk of real
nodes (HOME and TMPDIR are in it); all other files are shared, like a network file system.

Their TCP is Reno, which paces by losses alone: BBR, the default of some machines, guesses the speed of a connection,
and guesses low between the bursts of a collective.

Nothing has a name outside: the namespaces belong to processes only, the bridge to a namespace. When the cluster is
left, and also when this process is killed, the kernel kills every process of every host, and with them go mounts,
interfaces and bridge. The rejected alternative, `ip netns add`, leaves all that behind after a crash.

A host is entered (`Host.enter`), never addressed from outside: such traffic would leave this machine.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.jobs import ROOT

PORT = 2222
_SSHD = "/usr/sbin/sshd"  # sshd starts itself again for each connection and wants its absolute path for that

_NEW_HOST = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_ENTER = ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid"]

_TRIAL = """set -e
mount -t tmpfs tmpfs /dev/shm
ip link add hosts type bridge
ip link add port type veth peer name eth0"""

_SWITCH = """set -e
ip link add hosts type bridge
ip link set hosts up
echo ready
exec sleep infinity"""

_BOOT = """set -e
name=$1 folder=$2
hostname $name
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind $folder/ssh_config /etc/ssh/ssh_config
mount --bind $folder/hosts /etc/hosts
mount --bind $folder/disks/$name $folder/disk
ip link set lo up
echo reno >/proc/sys/net/ipv4/tcp_congestion_control
echo ready
exec {sshd} -D -e -f $folder/sshd_config 2>$folder/$name.sshd.log"""

_SSH_CONFIG = """Host *
    Port {port}
    IdentityFile {folder}/key
    StrictHostKeyChecking no
    ConnectionAttempts 10
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""

_SSHD_CONFIG = """Port {port}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
SetEnv HOME={folder}/disk/home TMPDIR={folder}/disk/tmp
"""


@dataclass(frozen=True)
class Host:
    """One host of a cluster."""

    name: str
    pid: int
    """Its first process, sshd, as this machine counts."""
    folder: Path
    """Of the cluster."""

    @property
    def disk(self) -> Path:
        """Where this machine sees what the host has under `disk`."""
        return self.folder / "disks" / self.name

    def enter(self, *words: str | Path) -> list[str]:
        """The command that runs `words` on this host, in the repository."""
        disk = self.folder / "disk"
        environment = [f"HOME={disk}/home", f"TMPDIR={disk}/tmp", "OMPI_ALLOW_RUN_AS_ROOT=1",
                       "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"]  # fmt: skip
        inside = ["env", "--unset=XDG_CACHE_HOME", "--chdir", str(ROOT), *environment, *(str(word) for word in words)]
        return [*_ENTER, "--target", str(self.pid), "--", *inside]

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Its living processes: all but sshd's own, or those called `name`."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # ended meanwhile, or not ours to look at
                here = _process_namespace(process.pid) == _process_namespace(self.pid)
                wanted = process.name() == name if name else process.name() != "sshd"
                if here and wanted and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def why_not() -> str:
    """Why this machine cannot have such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "several hosts on one machine need root"
    missing = [name for name in ("ip", "ssh", "ssh-keygen", "setpriv", "unshare", "nsenter") if not shutil.which(name)]
    missing += [] if Path(_SSHD).exists() else ["sshd"]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install -y iproute2 openssh-server"
    trial = subprocess.run([*_NEW_HOST, "sh", "-c", _TRIAL], capture_output=True, text=True, check=False)
    return f"no namespaces, bridges or mounts allowed here: {trial.stderr.strip()}" if trial.returncode else ""


@contextmanager
def cluster(folder: Path, names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts with these names, which reach each other by name and through ssh, until the block ends.

    `folder` is an empty one for their files.
    """
    _write_files(folder, names)
    started: list[subprocess.Popen[str]] = []
    firsts: list[psutil.Process] = []
    hosts = []
    try:
        switch = _start(["unshare", "--net", "sh", "-c", _SWITCH], started)
        for number, name in enumerate(names):
            process = _start([*_NEW_HOST, "sh", "-c", _BOOT.format(sshd=_SSHD), "boot", name, str(folder)], started)
            (first,) = psutil.Process(process.pid).children()
            firsts.append(first)
            hosts.append(Host(name, first.pid, folder))
            _plug_in(switch.pid, first.pid, f"port{number}", _address(number))
        yield hosts
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()
        psutil.wait_procs(firsts, timeout=10)  # the kernel takes a second or two


def _process_namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _address(number: int) -> str:
    return f"10.77.0.{number + 1}"


def _write_files(folder: Path, names: Sequence[str]) -> None:
    (folder / "disk").mkdir()
    for name in names:
        (folder / "disks" / name / "home").mkdir(parents=True)
        (folder / "disks" / name / "tmp").mkdir()
    table = "".join(f"{_address(number)} {name}\n" for number, name in enumerate(names))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{table}")
    (folder / "ssh_config").write_text(_SSH_CONFIG.format(folder=folder, port=PORT))
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(folder=folder, port=PORT))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)


def _start(command: list[str], started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start `command`, put it on the list, and wait until it says that it is ready."""
    # What dies with its parent needs no cleaning up.
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None and process.stderr is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"{' '.join(command)}: {process.stderr.read()}")
    return process


def _plug_in(switch: int, host: int, port: str, address: str) -> None:
    """A cable from a new port of the bridge to eth0 of the host."""
    inside_switch = ["nsenter", "--net", "--target", str(switch), "ip", "link"]
    inside_host = ["nsenter", "--net", "--target", str(host), "ip"]
    for command in (
        [*inside_switch, "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host)],
        [*inside_switch, "set", port, "master", "hosts", "up"],
        [*inside_host, "address", "add", f"{address}/24", "dev", "eth0"],
        [*inside_host, "link", "set", "eth0", "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)
