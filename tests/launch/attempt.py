"""What a rank of the tests does in each attempt: `python -S attempt.py FOLDER DEED...`, the last deed for all later.

It first writes down that it is there. Deeds: `end` (with status 0), `wait` (for ever), `die` (rank 1 by SIGKILL, the
others wait), `cue:N` (rank N dies as soon as there is a file `cue`), `exit:N` (all with status N), `save` (wait, and
when told to end by SIGTERM, SIGUSR1 or SIGHUP, write that down and end with status 75), `deaf` (wait, ignoring
SIGTERM), `stray` (leave a process in a session of its own, then as `die`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

folder, deeds = Path(sys.argv[1]), sys.argv[2:]
names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
rank = next(int(os.environ[name]) for name in names if name in os.environ)
attempt = int(os.environ["HVDKIT_ATTEMPT"])


def write(name: str, content: object) -> None:
    (folder / f"{name}.part").write_text(json.dumps(content))
    (folder / f"{name}.part").rename(folder / name)


def wait() -> None:
    while True:
        time.sleep(1)


def save(number: int, frame: object) -> None:
    time.sleep(2.5)  # longer than mpirun would give
    write(f"saved.{rank}", number)
    os._exit(75)


deed = deeds[min(attempt, len(deeds) - 1)]
if deed == "save":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, save)
if deed == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
here = {"pid": os.getpid(), "name": os.environ["HVDKIT_RUN_NAME"], "parent": os.getppid(), "host": os.uname().nodename}
if deed == "stray":
    # Not with the rank's stdout: horovodrun over Gloo waits until nobody has that any more.
    nowhere = subprocess.DEVNULL
    here["stray"] = subprocess.Popen(["sleep", "1000"], stdout=nowhere, stderr=nowhere, start_new_session=True).pid
write(f"{attempt}.{rank}", here)
if deed == "end":
    # As soon as one has ended, mpirun waits for the others; none would be there otherwise.
    sys.exit(0)
if deed.startswith("exit:"):
    sys.exit(int(deed.removeprefix("exit:")))
if deed in ("die", "stray") and rank == 1:
    while not (folder / f"{attempt}.0").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
while deed == f"cue:{rank}":
    time.sleep(0.05)
    if (folder / "cue").exists():
        os.kill(os.getpid(), signal.SIGKILL)
wait()
