"""What the processes of a supervised job use, sampled from outside: memory, open files, threads, shared memory."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from hvdkit.contract import ATTEMPT, RUN_NAME

SUPERVISOR = -1
"""Stands for a rank's number."""
_RANKS = ("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK")
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    time_s: float
    attempt: int
    rank: int
    pid: int
    rss_bytes: int
    own_bytes: int
    """Memory that is not of files; what n processes share counts a n-th in each. The whole PSS would rise when another
    job that has the same libraries open ends."""
    open_files: int
    threads: int
    shared_bytes: int
    """In /dev/shm, of all processes."""


def take(run_name: str, supervisor: int) -> list[Sample]:
    """Of every rank of the job, and of its supervisor, process `supervisor`."""
    now, shared = time.time(), _shared_bytes()
    found = []
    for attempt, rank, process in [*ranks_of(run_name), *_one(supervisor)]:
        with suppress(psutil.Error, OSError):  # ended meanwhile
            rss, own = _memory(process.pid)
            found.append(
                Sample(now, attempt, rank, process.pid, rss, own, process.num_fds(), process.num_threads(), shared)
            )
    return found


def ranks_of(run_name: str) -> list[tuple[int, int, psutil.Process]]:
    """(attempt, rank, process) of the job's living ranks."""
    found: dict[int, tuple[int, int, psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environ = process.environ()
            rank = next((environ[name] for name in _RANKS if name in environ), None)
            if environ.get(RUN_NAME) == run_name and rank is not None and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = (int(environ[ATTEMPT]), int(rank), process)
    # A shell of the launcher's around a rank, and what a rank started, are no ranks.
    return [item for item in found.values() if _is_rank(item[2])]


def write(samples: list[Sample], path: Path) -> None:
    """Append them as JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(sample)) + "\n" for sample in samples)


def read(path: Path) -> list[Sample]:
    """What `write` wrote."""
    return [Sample(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "hvdkit.train" in process.cmdline()[:4]
    return False


def _one(pid: int) -> list[tuple[int, int, psutil.Process]]:
    with suppress(psutil.Error):
        return [(0, SUPERVISOR, psutil.Process(pid))]
    return []


def _memory(pid: int) -> tuple[int, int]:
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        values[name] = int(value) * 1024
    return values["Rss:"], values["Pss_Anon:"] + values["Pss_Shmem:"]


def _shared_bytes() -> int:
    total = 0
    for path in _SHARED.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_blocks * 512
    return total
