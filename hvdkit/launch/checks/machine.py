"""The machine: cores, shared memory, and ssh to other hosts."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hvdkit.launch.facts import Facts
from hvdkit.launch.findings import Finding, ok, warning

_SHARED_MB_PER_RANK = 64


def cores(facts: Facts) -> Iterator[Finding]:
    """Those of the affinity mask: what the kernel, a container or a batch system lets this process use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{usable} of {os.cpu_count()} usable, for {facts.ranks} ranks"
    if facts.ranks > usable:
        yield warning("cores", found, "ranks share cores; it works (hvdkit lets idle ones yield), but more slowly")
    else:
        yield ok("cores", found)


def shared_memory(facts: Facts) -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    found = f"{usage.free // 2**20:,} of {usage.total // 2**20:,} MB free"
    needed_mb = _SHARED_MB_PER_RANK * (facts.ranks + 1)
    if usage.free < needed_mb * 2**20:
        yield warning("/dev/shm", f"{found}; {needed_mb} MB are comfortable for {facts.ranks} ranks",
                      "start the container with --shm-size=1g, or remove what old jobs left there")  # fmt: skip
    else:
        yield ok("/dev/shm", found)


def ssh(facts: Facts) -> Iterator[Finding]:
    program = shutil.which("ssh")
    if program:
        yield ok("ssh", program)
    else:
        yield warning("ssh", "not installed", "only needed for several hosts: install openssh-client")
