"""Checks a built wheel, before it is installed, by starting two ranks: over MPI and over Gloo."""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.mpi import Mpi, mpi_environment
from hvdkit.horovod_build.process import run_limited

_LIMIT_S = 180
_LAUNCHER_VARIABLES = ("OMPI_", "PMIX_", "PMI_", "HOROVOD_", "SLURM_")

# As hvdkit does it: MPI is started by mpi4py, since if Horovod starts it, the first rank to leave ends it under the
# others; and Horovod is loaded first, so that mpi4py takes the MPI library that Horovod is linked with.
_PROGRAM = """
import os, re, sys
import torch
import horovod.torch as hvd
if sys.argv[1] == "MPI":
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    with open("/proc/self/maps") as maps:
        found = {os.path.realpath(line.split()[-1]) for line in maps if re.search(r"/libmpi(ch|_intel|_gnu)?[.]", line)}
    if len(found) > 1:
        sys.exit("mpi4py and Horovod load two MPI libraries: " + ", ".join(sorted(found)))
    MPI.Init_thread(MPI.THREAD_MULTIPLE)
hvd.init()
def is_right(device):
    total = hvd.allreduce(torch.full((1000,), float(hvd.rank() + 1), device=device), op=hvd.Sum)
    return hvd.size() == 2 and bool((total == 3).all())
good = is_right("cpu")
if hvd.nccl_built() and torch.cuda.device_count() > 1:
    good = is_right(f"cuda:{hvd.local_rank()}") and good
hvd.shutdown()
if sys.argv[1] == "MPI":
    MPI.Finalize()
sys.exit(0 if good else f"rank {hvd.rank()} of {hvd.size()}: the result is wrong")
"""


def verify(wheel: Path, mpi: Mpi) -> list[str]:
    """Run an all-reduce on two ranks with each launcher, with `wheel` unpacked beside what is installed.

    Returns a line per check; raises BuildError if one fails. What is installed stays as it is.
    """
    if mpi.mpirun is None:
        raise BuildError(f"there is no mpirun or mpiexec in {mpi.folder} to check Horovod with; pass --verify later, "
                         "and the first run with more than one rank will check it")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="hvdkit-verify-") as name:
        staging = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(staging)
        python = [sys.executable, "-c", _PROGRAM]
        oversubscribe = ["--oversubscribe"] if mpi.is_open_mpi else []
        launches = {
            "MPI": [mpi.mpirun, *oversubscribe, "-np", "2", *python, "MPI"],
            "Gloo": [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "2", *python, "Gloo"],
        }
        return [_check(launch, command, mpi, staging) for launch, command in launches.items()]


def _check(launch: str, command: list[str], mpi: Mpi, staging: Path) -> str:
    env = {name: value for name, value in mpi_environment(mpi.folder).items()
           if not name.startswith(_LAUNCHER_VARIABLES)}  # fmt: skip
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(staging), env.get("PYTHONPATH"))))
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    status, said = run_limited(command, env, _LIMIT_S, cwd=staging)
    if status == 0:
        return f"two ranks over {launch}: all-reduce is right"
    happened = f"did not finish within {_LIMIT_S} s" if status is None else f"failed with status {status}"
    raise BuildError(
        f"Horovod was built, but two ranks over {launch} {happened}; nothing was changed in this environment. "
        "`hvdkit doctor` tells whether MPI itself is at fault; where ranks may not be started (login nodes), pass "
        f"--verify later; --rebuild builds anew.\n{said.strip()[-1500:]}"
    )
