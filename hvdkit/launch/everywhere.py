"""A supervised job on all its hosts at once: its ranks told something, what it left behind ended."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hvdkit.launch import leftovers
from hvdkit.launch.hosts import Host, ask_host, is_local
from hvdkit.launch.site import python_there

_TELL_LIMIT_S = 20.0
_CLEAN_LIMIT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What came of a question to one host; without an error, a number of processes."""

    host: Host
    processes: int = 0
    error: str = ""


@dataclass(frozen=True)
class Everywhere:
    """The job called `run_name` on `hosts` (none: this machine alone)."""

    run_name: str
    hosts: tuple[Host, ...]
    folder: Path
    """Open MPI's session folder of this job."""

    def tell(self, number: int) -> int:
        """Send a signal to all ranks; returns how many that were."""
        answers = self._ask(lambda: leftovers.tell_ranks(self.run_name, number), ["--signal", str(number)],
                            _TELL_LIMIT_S)  # fmt: skip
        return sum(answer.processes for answer in answers)

    def clean(self) -> list[Answer]:
        """End what is left of the job, and remove its files, on every host that answers and can do it."""
        return self._ask(self._clean_here, ["--folder", str(self.folder)], _CLEAN_LIMIT_S)

    def _clean_here(self) -> int:
        ended = leftovers.end_processes(self.run_name)
        leftovers.sweep_files(self.folder)
        return ended

    def _ask(self, here: Callable[[], int], options: Sequence[str], limit_s: float) -> list[Answer]:
        hosts = self.hosts or (Host("localhost", 1),)
        command = python_there(["-m", "hvdkit.launch.leftovers", self.run_name, *options])
        with ThreadPoolExecutor(len(hosts)) as pool:
            return list(pool.map(lambda host: Answer(host, here()) if is_local(host.name)
                                 else _ask_other(host, command, limit_s), hosts))  # fmt: skip


def _ask_other(host: Host, command: str, limit_s: float) -> Answer:
    result = ask_host(host.name, command, limit_s)
    said = result.stdout.split()
    if result.returncode == 0 and said and said[-1].isdigit():
        return Answer(host, int(said[-1]))
    lines = result.stderr.strip().splitlines() or ["no reason given"]
    what = "ssh does not reach it" if result.returncode == 255 else f"{sys.executable} does not run hvdkit there"
    return Answer(host, error=f"{what}: {lines[-1].strip()}")
