"""What a fault does, in the process that it strikes: the real thing, not an imitation of its consequences."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

BALLAST = "ballast"
"""The file that fills the disk; the victim removes it at its next start."""
CUT_S = 12
"""How long the network stays cut."""
_ROOM_BYTES = 2**25


class InjectedError(Exception):
    """What a fault of the kind `exception` raises."""


def deed(kind: str, folder: Path, seed: int) -> Callable[[], None]:
    """What to do for a fault of `kind`, in a run whose folder is `folder`."""
    if kind in _SIGNALS:
        return lambda: os.kill(os.getpid(), _SIGNALS[kind])
    special: dict[str, Callable[[], None]] = {
        "exception": _raise,
        "sys.exit": lambda: sys.exit(3),
        "os._exit": lambda: os._exit(3),
        "memory": _use_up_memory,
        "disk full": lambda: fill_disk(folder),
        "bits flipped": lambda: flip_bits(folder, seed),
        "SIGKILL launcher": lambda: _ancestor(is_launcher).kill(),
        "SIGKILL supervisor": lambda: _ancestor(is_supervisor).kill(),
        "SIGTERM supervisor": lambda: _ancestor(is_supervisor).terminate(),
        "network cut": cut_network,
    }
    return special[kind]


def runs_in_any_thread(kind: str) -> bool:
    """Whether a thread beside the one that the fault is for can do it."""
    return kind in _SIGNALS or kind in ("os._exit", "network cut") or "launcher" in kind or "supervisor" in kind


_SIGNALS = {
    name: getattr(signal, name) for name in ("SIGKILL", "SIGSEGV", "SIGSTOP", "SIGTERM", "SIGUSR1")
}  # fmt: skip


def is_launcher(process: psutil.Process) -> bool:
    """mpirun, or horovodrun where it starts ranks itself, over Gloo."""
    words = process.cmdline()
    if not words:
        return False
    # By the command line: the program that the wheel's mpirun is has another name, and `hvdkit run` calls horovodrun's
    # main function.
    is_gloo = any("horovodrun" in word for word in words[:3]) and "--gloo" in words
    return is_gloo or Path(words[0]).name in ("mpirun", "mpiexec")


def is_supervisor(process: psutil.Process) -> bool:
    """`python -m hvdkit.launch.run`, as cases start it."""
    return "hvdkit.launch.run" in process.cmdline()


def fill_disk(folder: Path) -> None:
    """Leave no room on the file system that `folder` is on. It must be a small one, of the case alone."""
    room = os.statvfs(folder)
    if room.f_bavail * room.f_frsize > 2**30:
        raise RuntimeError(f"{folder} is on no disk of its own: it has room for more than 1 GiB")
    with (folder / BALLAST).open("wb", buffering=0) as file:
        for n_bytes in (2**20, 2**12):
            with suppress(OSError):  # other ranks write too, so that how much fits is known when no more does
                while True:
                    file.write(bytes(n_bytes))


def flip_bits(folder: Path, seed: int) -> None:
    """Change one bit of one file of the newest checkpoint of the run, chosen by `seed`."""
    choose = random.Random(seed)
    newest = max((path for path in (folder / "checkpoints").glob("step-*[0-9]")), key=lambda path: path.name)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    path = choose.choice(files)
    content = bytearray(path.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    path.write_bytes(content)


def cut_network() -> None:
    """Take this host's interface down, and up again later, whatever becomes of this process and its job."""
    script = f"ip link set eth0 down; sleep {CUT_S}; ip link set eth0 up"
    subprocess.Popen(["sh", "-c", script], start_new_session=True, env={"PATH": os.environ["PATH"]},
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    time.sleep(0.2)


def _raise() -> None:
    raise InjectedError("planned")


def _use_up_memory() -> None:
    """Go to the limit of the address space, and stay there: what handles the error has no memory either."""
    in_use = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (in_use + _ROOM_BYTES, resource.RLIM_INFINITY))
    pieces, n_bytes = [], _ROOM_BYTES // 4
    while n_bytes >= 2**16:
        try:
            pieces.append(bytearray(n_bytes))
        except MemoryError:
            n_bytes //= 2
    _KEPT.extend(pieces)
    raise MemoryError("planned")


_KEPT: list[bytearray] = []


def _ancestor(wanted: Callable[[psutil.Process], bool]) -> psutil.Process:
    for process in psutil.Process().parents():
        if wanted(process):
            return process
    raise RuntimeError("no such process stands above this one")
