"""Hosts and their slots: as the user names them, which of them are this machine, and whether ssh reaches the rest."""

import re
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hvdkit.errors import LaunchError
from hvdkit.untrusted import shown

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""Never asks for a password or a host key: a launcher could not answer either."""

# A leading dash would be an option to ssh.
_ENTRY = re.compile(r"([A-Za-z0-9_][\w.-]*)(?::([1-9]\d{0,8}))?", re.ASCII)
_MOST_IN_NAME, _MOST_IN_LABEL = 253, 63
"""Characters, by RFC 1035."""


@dataclass(frozen=True)
class Host:
    """A machine and how many ranks it may run."""

    name: str
    slots: int


def parse_hosts(text: str) -> tuple[Host, ...]:
    """`node1:4,node2:4`, or `node1,node2` with 1 slot each; a host named twice has the sum. Raises LaunchError."""
    return _merge([_host(entry.strip(), f"-H {text[:200]}") for entry in text.split(",")])


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Lines of `host slots=N` (Open MPI), `host:N` (MPICH), or a host per slot (PBS); `#` begins a comment.

    Raises LaunchError naming the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"--hostfile {path} cannot be read: {error}") from None
    hosts = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words:
            slots = [word.partition("=")[2] for word in words[1:] if word.startswith("slots=")]
            hosts.append(_host(":".join([words[0], *slots]), f"{path}, line {number}"))
    if not hosts:
        raise LaunchError(f"--hostfile {path} names no host; write lines of `host slots=N`")
    return _merge(hosts)


def host_list(hosts: Sequence[Host]) -> str:
    """`node1:4,node2:4`, which every launcher understands."""
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def is_local(name: str) -> bool:
    """Whether `name` is this machine: its own name, or a name of an address that it has."""
    if name in ("localhost", socket.gethostname()):
        return True
    try:
        address = socket.gethostbyname(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # only an address of this machine can be bound
    except OSError:
        return False
    return True


def check_reachable(hosts: Sequence[Host], program: str) -> None:
    """Raise LaunchError unless ssh reaches every host without a question and `program` is there.

    The launchers find out as well, but after half a minute and with a page of text per host.
    """
    remote = [host.name for host in hosts if not is_local(host.name)]
    if not remote:
        return
    with ThreadPoolExecutor(len(remote)) as pool:
        results = list(pool.map(lambda name: ask_host(name, f"test -x {shlex.quote(program)}", timeout_s=30), remote))
    silent = {name: result.stderr for name, result in zip(remote, results, strict=True) if result.returncode == 255}
    if silent:
        raise LaunchError(unreachable(silent))
    lacking = [name for name, result in zip(remote, results, strict=True) if result.returncode != 0]
    if lacking:
        raise LaunchError(
            f"{', '.join(lacking)} has no {program}: every host needs the environment at the same path (a shared "
            "folder, or a copy)"
        )


def ask_host(name: str, command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a shell command on a host; ssh's own failures, a missing ssh and a time-out too have status 255."""
    words = [*SSH, name, command]
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s,
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 255, "", "ssh is not installed here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 255, "", f"no answer within {timeout_s:.0f} s")


def unreachable(said: Mapping[str, str]) -> str:
    """One sentence on hosts that ssh does not reach, with the remedy; `said` is what ssh wrote, by host."""
    first = next(iter(said))
    reason = (said[first].strip().splitlines() or ["no reason given"])[-1].strip()
    return (
        f"ssh does not reach {', '.join(said)} without a password ({reason}); `ssh {first} true` must work from here: "
        f"check the name, and set up a key with `ssh-copy-id {first}`"
    )


def _host(entry: str, where: str) -> Host:
    found = _ENTRY.fullmatch(entry)
    if found is None or len(found[1]) > _MOST_IN_NAME or not all(map(_is_label, found[1].split("."))):
        raise LaunchError(f"{where}: {shown(entry)} is not of the form host or host:slots, such as node1:4")
    return Host(found[1], int(found[2] or 1))


def _is_label(text: str) -> bool:
    return 0 < len(text) <= _MOST_IN_LABEL


def _merge(hosts: Sequence[Host]) -> tuple[Host, ...]:
    slots: dict[str, int] = {}
    for host in hosts:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    return tuple(Host(name, count) for name, count in slots.items())
