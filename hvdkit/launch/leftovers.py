"""What an attempt of a job may leave behind on a host, found and ended: `python -m hvdkit.launch.leftovers`.

Whatever belongs to a job carries its name. Its processes have it in their environment (`HVDKIT_RUN_NAME`); an `orted`
or `hydra_pmi_proxy`, which has not, is the parent of one that has. Open MPI's session folders of this job are put
together into one folder of that name (`session_folder`), and the names in it hold the numbers of Open MPI's jobs, which
are in the names of its shared-memory files too. So nothing else is ever touched: no other job's, no other user's.

What really stays (Open MPI 4.1.8, Horovod 0.28.1, two ranks on one machine, looked at 4 to 12 s later):

| killed by SIGKILL | processes | files |
|---|---|---|
| a rank | none: mpirun ends the others | none |
| mpirun | none that use MPI, which miss it; all others, and what the ranks started | both as in the next line |
| mpirun and all ranks | none | `vader_segment.*` in /dev/shm, the session folder `ompi.HOST.UID/pid.N` |
| horovodrun over Gloo | none: they notice | `sem.mp-*` in /dev/shm, if its resource tracker is killed too |
"""

import argparse
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from hvdkit.contract import RUN_NAME

SHARED_MEMORY = Path("/dev/shm")
_DAEMONS = {"orted", "prted", "hydra_pmi_proxy"}
SHELLS = {"sh", "dash", "bash", "ksh", "zsh"}
RANK_VARIABLES = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "HOROVOD_RANK"}
_GRACE_S = 10.0
_NOTICE_S = 1.0
_TRACKER_S = 3.0


def session_folder(run_name: str, parent: str) -> Path:
    """Where Open MPI shall keep the session folders of this job, on every host."""
    return Path(parent) / f"hvdkit-{run_name}"


def processes_of(run_name: str) -> list[psutil.Process]:
    """This user's living processes that belong to the job, daemons above its ranks included."""
    found = {process.pid: process for process, _ in _members(run_name)}
    for process in list(found.values()):
        with suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and parent.name() in _DAEMONS and parent.uids().effective == os.geteuid():
                found[parent.pid] = parent
    return list(found.values())


def tell_ranks(run_name: str, number: int) -> int:
    """Send a signal to the job's ranks here, and not to what they started; returns how many there were.

    A shell around a program is no rank: it would end, and leave the program without a word.
    """
    with_rank = {process.pid: process for process, environ in _members(run_name) if RANK_VARIABLES & environ.keys()}
    ranks = []
    for process in with_rank.values():
        with suppress(psutil.Error):
            if process.ppid() not in with_rank:
                ranks += _programs(process)
    for process in ranks:  # all known by now: the children of one that ends at once get another parent
        with suppress(psutil.Error):
            process.send_signal(number)
    return len(ranks)


def end_processes(run_name: str, grace_s: float = _GRACE_S) -> int:
    """Kill what is left of the job here; returns how many processes that were.

    Called when the launcher is gone: ranks without one cannot save together, so that they get no time for it, but the
    second that it takes to notice.
    """
    psutil.wait_procs(processes_of(run_name), timeout=_NOTICE_S)
    killed: set[int] = set()
    deadline = time.monotonic() + grace_s
    while (found := processes_of(run_name)) and time.monotonic() < deadline:
        # A resource tracker ends when those that it serves have, and removes the semaphores that they left.
        doomed = [process for process in found if not _is_tracker(process)]
        if not doomed:
            _, doomed = psutil.wait_procs(found, timeout=_TRACKER_S)
        for process in doomed:
            with suppress(psutil.Error):
                process.kill()
                killed.add(process.pid)
        psutil.wait_procs(doomed, timeout=1)
    return len(killed)


def sweep_files(folder: Path, shared_memory: Path = SHARED_MEMORY) -> int:
    """Remove what Open MPI left of the job on this host; returns how many files of shared memory that were.

    To be called when no process of the job lives here. `folder` may be one that several hosts share.
    """
    host = socket.gethostname()
    names = "|".join(re.escape(name) for name in {host, host.partition(".")[0]})
    mine = [path for path in _own(folder) if re.fullmatch(rf"\w+\.(?:{names})\.(?:\d+\.)*{os.geteuid()}", path.name)]
    families = {family for path in mine for family in _job_families(path)}
    swept = 0
    for path in _own(shared_memory) if families else ():
        if _family_in_hexadecimal(path.name) in families:
            with suppress(OSError):
                path.unlink()
                swept += 1
    for path in mine:
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # not there, or not empty yet: another host's
        folder.rmdir()
    return swept


def _members(run_name: str) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # ended meanwhile, or not ours to look at
            if process.uids().effective == os.geteuid() and process.pid != os.getpid():
                environ = process.environ()
                if environ.get(RUN_NAME) == run_name and process.status() != psutil.STATUS_ZOMBIE:
                    yield process, environ


def _programs(process: psutil.Process) -> list[psutil.Process]:
    """The process itself, or what it runs, if it is a shell that runs something."""
    children = process.children() if process.name() in SHELLS else []
    return [program for child in children for program in _programs(child)] or [process]


def _is_tracker(process: psutil.Process) -> bool:
    """Whether it is one of Python's multiprocessing."""
    with suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    return False


def _own(folder: Path) -> list[Path]:
    """What this user has in a folder."""
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if path.lstat().st_uid == os.geteuid():
                    found.append(path)
    return found


def _job_families(session: Path) -> Iterator[int]:
    """The upper half of Open MPI's job number is the same for all that one mpirun starts."""
    for path in session.rglob("*"):
        if found := re.fullmatch(r"jf\.(\d+)", path.name):
            yield int(found[1])
        elif found := re.search(r"seg-(\d+)(-\d+)?$", path.name):
            yield int(found[1]) >> 16


def _family_in_hexadecimal(name: str) -> int:
    """`vader_segment.HOST.UID.5af60001.0`: 0x5af6. -1 where there is none."""
    found = re.match(r"(?:vader_segment|sm_segment|osc_sm)\..*\.([0-9a-f]{5,8})(?:\.\d+)+$", name)
    return int(found[1], 16) >> 16 if found else -1


def main(argv: list[str] | None = None) -> int:
    """Print how many processes were told, or ended."""
    parser = argparse.ArgumentParser(prog="python -m hvdkit.launch.leftovers", description="End what a job left here.")
    parser.add_argument("run_name")
    parser.add_argument("--folder", type=Path, help="the job's session folder")
    parser.add_argument("--signal", type=int, help="do not end anything: send this signal to the ranks")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a connection that breaks does not leave the work half done
    if options.signal is not None:
        print(tell_ranks(options.run_name, options.signal))
        return 0
    print(end_processes(options.run_name))
    if options.folder is not None:
        sweep_files(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
