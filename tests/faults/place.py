"""A place of its own for a program that starts jobs and ends them badly: namespaces of processes, mounts and IPC.

What lives in it beside the program, and what lies in its /dev/shm, comes from its jobs; and when the program ends, or
is killed, the kernel ends all that it started and takes its mounts away.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hvdkit.launch.job import end_when_told

_INSIDE = "HVDKIT_CHAOS_PLACE"
_NEW = ["unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
# The shell is process 1 there: it collects whatever loses its parent.
_BOOT = 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm || exit 1; "$@"; exit $?'


def is_own() -> bool:
    """Whether this process runs in such a place."""
    return os.environ.get(_INSIDE) == "1"


def go_there(module: str, words: Sequence[str]) -> None:
    """Run `python -m MODULE WORDS` in a place of its own and exit with its status; returns where there can be none."""
    if is_own() or os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        return
    if subprocess.run([*_NEW, "sh", "-c", _BOOT, "sh", "true"], capture_output=True, check=False).returncode:
        return
    # It dies with this process, however that ends; of itself `unshare` would not be told to end by a signal.
    command = ["setpriv", "--pdeathsig", "KILL", *_NEW, "sh", "-c", _BOOT, "sh", sys.executable, "-m", module, *words]
    end_when_told()
    process = subprocess.Popen(command, env={**os.environ, _INSIDE: "1"})
    try:
        status = process.wait()
    except KeyboardInterrupt:  # which a terminal has sent there too
        status = 128 + signal.SIGINT
    finally:
        process.kill()
    sys.exit(status)


def shared_memory_left() -> list[str]:
    """Files in this place's /dev/shm; nothing where it is everyone's."""
    if not is_own():
        return []
    return sorted(f"/dev/shm/{path.name} left" for path in Path("/dev/shm").iterdir())
