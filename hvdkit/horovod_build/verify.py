"""Checks an installed Horovod by starting two ranks, over MPI and over Gloo."""

import os
import subprocess
import sys
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.toolchain import Toolchain, mpi_environment

_MARKER = "hvdkit_unverified"

# MPI is started by mpi4py, as hvdkit does it: started by Horovod, the first rank to leave ends it under the others.
_PROGRAM = """
import os, sys
if sys.argv[1] == "mpi":
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    MPI.Init_thread(MPI.THREAD_MULTIPLE)
import torch
import horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.full((1000,), float(hvd.rank() + 1)), op=hvd.Sum, name="verify")
good = hvd.size() == 2 and bool((total == 3).all())
hvd.shutdown()
if sys.argv[1] == "mpi":
    MPI.Finalize()
sys.exit(0 if good else 3)
"""


def verify(toolchain: Toolchain) -> list[str]:
    """Run an all-reduce on two ranks with each launcher; returns a line per check. Raises BuildError if one fails."""
    mpi_bin = Path(toolchain.mpi_bin)
    env = {name: value for name, value in mpi_environment(mpi_bin).items() if not name.startswith(("OMPI_", "PMIX_"))}
    env.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    env.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    python = [sys.executable, "-c", _PROGRAM]
    oversubscribe = ["--oversubscribe"] if "Open MPI" in toolchain.mpi or "OpenRTE" in toolchain.mpi else []
    horovodrun = [sys.executable, "-m", "horovod.runner.launch"]
    launches = {
        "MPI": [str(mpi_bin / "mpirun"), *oversubscribe, "-np", "2", *python, "mpi"],
        "Gloo": [*horovodrun, "--gloo", "-np", "2", *python, "gloo"],
    }
    return [_check(name, command, env) for name, command in launches.items()]


def mark_unverified() -> None:
    """Leave the check to the first `init()` with more than one rank."""
    folder = _installed_folder()
    if folder is not None:
        (folder / _MARKER).touch()


def is_unverified() -> bool:
    """Whether the check was left for later (`--verify later`)."""
    folder = _installed_folder()
    return folder is not None and (folder / _MARKER).exists()


def mark_verified() -> None:
    """Two ranks have worked together: nothing is left to check."""
    folder = _installed_folder()
    if folder is not None:
        (folder / _MARKER).unlink(missing_ok=True)


def _installed_folder() -> Path | None:
    import importlib.util

    spec = importlib.util.find_spec("horovod")
    return Path(spec.origin).parent if spec and spec.origin else None


def _check(name: str, command: list[str], env: dict[str, str]) -> str:
    try:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False,
                                cwd=os.path.expanduser("~"))  # fmt: skip  # noqa: PTH111
    except subprocess.TimeoutExpired:
        raise BuildError(f"two ranks over {name} did not finish within 120 s; see `hvdkit doctor`") from None
    if result.returncode:
        said = (result.stdout + result.stderr).strip()[-1500:]
        raise BuildError(f"two ranks over {name} failed with status {result.returncode}; see `hvdkit doctor`\n{said}")
    return f"two ranks over {name}: all-reduce is right"
