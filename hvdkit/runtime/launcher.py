"""What the launcher announced to this process through the environment, before any library has started.

horovodrun (Gloo), mpirun (Open MPI), mpiexec (MPICH's Hydra, Intel MPI) and srun (PMIx, PMI2) each set their
own variables. The first family whose rank and size are both present wins; the order matters because srun's
variables are also visible to an mpirun started inside a Slurm job.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchInfo:
    """One process's place in the job, as announced.

    `local_size` is None where the launcher does not say. `uses_gloo` is True where Horovod's Gloo controller
    was asked for, so that MPI must not be started.
    """

    launcher: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int | None = 1
    uses_gloo: bool = False

    @property
    def is_launched(self) -> bool:
        """Whether any launcher started this process (False under plain `python`)."""
        return self.launcher != "python"


# launcher, rank, size, local rank, local size
_FAMILIES = (
    ("horovodrun --gloo", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    (
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("mpiexec (MPICH)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def launch_info(environ: Mapping[str, str] = os.environ) -> LaunchInfo:
    """Read this process's place from `environ`; without a launcher it is rank 0 of 1."""
    # An interactive Slurm shell (salloc) carries SLURM_PROCID=0 with no step of its own: not a launch of ours.
    for launcher, rank, size, local_rank, local_size in _FAMILIES:
        if rank in environ and size in environ:
            gloo = launcher.endswith("--gloo")
            if gloo and environ.get("HOROVOD_CONTROLLER", "gloo") != "gloo":
                continue
            if launcher == "srun" and environ.get("SLURM_STEP_ID") in (None, "", "4294967290"):
                continue
            return LaunchInfo(
                launcher=launcher,
                rank=int(environ[rank]),
                size=int(environ[size]),
                local_rank=int(environ.get(local_rank, 0)),
                local_size=_leading_int(environ.get(local_size)),
                uses_gloo=gloo,
            )
    return LaunchInfo(launcher="python", uses_gloo=environ.get("HOROVOD_CONTROLLER") == "gloo")


def _leading_int(text: str | None) -> int | None:
    """`4`, `4(x2)` and `4,3` all begin with this node's or an average node's count; None if absent."""
    if not text:
        return None
    digits = text.split("(")[0].split(",")[0]
    return int(digits) if digits.isdigit() else None
