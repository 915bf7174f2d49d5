"""Quirk of Open MPI below `srun`: PyPI's wheel speaks PMIx only, and where there is none MPI_Init ends the process.

It prints a page per rank that advises to build Open MPI anew. So the case is recognised before MPI starts: several
tasks are an error with a remedy, a single task is one rank and starts as under plain `python`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hvdkit.errors import LaunchError
from hvdkit.runtime.launcher import LaunchInfo

_STEP = "SLURM_STEP_ID"
"""Open MPI takes itself for a task of srun where this is set."""


@contextmanager
def start_without_pmix(mpi: Any, launch: LaunchInfo, is_wheel: bool) -> Iterator[None]:
    """Around the start of MPI (`mpi` is mpi4py's module, `is_wheel` whether Open MPI is PyPI's).

    Raises LaunchError where srun started several tasks without PMIx.
    """
    if not is_wheel or launch.launcher != "srun" or "PMIX_RANK" in os.environ or not _is_open_mpi(mpi):
        yield
        return
    if launch.size > 1:
        raise LaunchError(
            f"srun started {launch.size} tasks without PMIx, which PyPI's Open MPI needs: use `srun --mpi=pmix` (`srun "
            f"--mpi=list` tells whether this Slurm has it), or start the ranks with `hvdkit run -np {launch.size} -- "
            "...` inside the allocation (`salloc`, `sbatch`)"
        )
    step = os.environ.pop(_STEP)
    try:
        yield
    finally:
        os.environ[_STEP] = step


def _is_open_mpi(mpi: Any) -> bool:
    return "Open MPI" in mpi.Get_library_version()
