"""An MPI's own launcher (mpirun, mpiexec): which MPI it belongs to, by what it says of itself."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class MpiLauncher:
    """A launcher that was found."""

    program: str
    family: str
    """`openmpi` (Spectrum MPI too), `hydra` (MPICH, Intel MPI, MVAPICH) or `unknown`."""
    title: str
    """What it calls itself, such as `mpirun (Open MPI) 4.1.8`."""
    version: tuple[int, int] = (0, 0)
    """Major and minor."""


def find_launcher(path: str) -> MpiLauncher | None:
    """The first mpirun (or mpiexec, where there is only that) on `path`."""
    program = shutil.which("mpirun", path=path) or shutil.which("mpiexec", path=path)
    return None if program is None else identify(program, path)


def identify(program: str, path: str) -> MpiLauncher:
    """Ask a launcher for its version."""
    text = output([program, "--version"], path)
    hydra = re.search(r"HYDRA build details:\s+Version:\s+(\S+)", text)
    title = f"HYDRA {hydra[1]}" if hydra else text.strip().partition("\n")[0]
    return MpiLauncher(program, _family(text), title or "says no version", version_in(title))


def version_in(text: str) -> tuple[int, int]:
    """The first `major.minor` in a text; (0, 0) if there is none."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def output(command: list[str], path: str, timeout_s: float = 30) -> str:
    """What `command` prints (both streams) with this PATH, or nothing if it does not run or end."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                                timeout=timeout_s, env={**os.environ, "PATH": path})  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout + result.stderr


def _family(text: str) -> str:
    if "Open MPI" in text or "OpenRTE" in text or "Spectrum" in text:
        return "openmpi"
    return "hydra" if "HYDRA" in text or "Intel(R) MPI" in text or "MPICH" in text else "unknown"
