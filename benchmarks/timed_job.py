"""Runs commands at once and prints how long they took and their largest resident set: `'[[WORD, ...], ...]' FOLDER`.

A small program of its own, since the resident set of a process begins as that of the one that it was forked from. The
time ends when all that lies in FOLDER is on disk. Prints a JSON object, or what a command that failed has printed.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Run, wait, tell."""
    commands, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    start = time.perf_counter()
    jobs = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        for words in commands
    ]
    peak, last = 0, ""
    for job in jobs:
        assert job.stdout is not None
        printed = job.stdout.read()
        _, status, usage = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        if status:
            sys.exit(f"status {job.returncode}\n{printed}")
        last = (printed.splitlines() or [""])[-1]
        peak = max(peak, usage.ru_maxrss * 1024)
    for path in out.rglob("*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    print(json.dumps({"s": time.perf_counter() - start, "bytes": peak, "last_line": last}))


if __name__ == "__main__":
    main()
