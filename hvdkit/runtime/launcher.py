"""What the launcher announced to this process through the environment, before any library has started.

horovodrun (Gloo), mpirun (Open MPI), mpiexec (MPICH's Hydra, Intel MPI) and srun (PMIx, PMI2) each set their
own variables. The first family whose rank and size are both present wins; the order matters because srun's
variables are also visible to an mpirun started inside a Slurm job.

`hvdkit run --max-restarts` adds two of its own: the job's name, and how often it was started before.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hvdkit.contract import ATTEMPT, RUN_NAME, is_run_name


@dataclass(frozen=True)
class LaunchInfo:
    """One process's place in the job, as announced.

    `local_size` is None where the launcher does not say. `uses_gloo` is True where Horovod's Gloo controller
    was asked for, so that MPI must not be started.

    `run_name` is the name that `hvdkit run --max-restarts` gave the job, the same in all its attempts and fit for a
    folder's name; None without it. `attempt` counts the job's starts from 0: above 0 there is something to go on from.
    """

    launcher: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int | None = 1
    uses_gloo: bool = False
    run_name: str | None = None
    attempt: int = 0

    @property
    def is_launched(self) -> bool:
        """Whether any launcher started this process (False under plain `python`)."""
        return self.launcher != "python"


# launcher, rank, size, local rank, ranks per node, and a variable that this launcher alone sets
_FAMILIES = (
    ("horovodrun --gloo", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE", "HOROVOD_RANK"),
    (
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_RANK",
    ),
    ("mpiexec (MPICH)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    # With --mpi=pmi2 it sets PMI_RANK too.
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_ID"),
    ("a PMI launcher", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE", "PMI_RANK"),
)

# The step of an interactive `salloc` shell, which is not a launch of ours although it has SLURM_PROCID=0.
_INTERACTIVE_STEP = "4294967290"


def launch_info(environ: Mapping[str, str] = os.environ) -> LaunchInfo:
    """Read this process's place from `environ`; without a launcher it is rank 0 of 1.

    A run name that is no plain file name, and an attempt that is no number, are as good as none.
    """
    run_name = environ.get(RUN_NAME, "")
    if not is_run_name(run_name):
        return _place(environ)
    number = environ.get(ATTEMPT, "0")
    attempt = int(number) if re.fullmatch(r"\d{1,9}", number, re.ASCII) else 0
    return replace(_place(environ), run_name=run_name, attempt=attempt)


def _place(environ: Mapping[str, str]) -> LaunchInfo:
    for launcher, rank, size, local_rank, local_size, sign in _FAMILIES:
        if not {rank, size, sign} <= environ.keys() or environ[sign] == _INTERACTIVE_STEP:
            continue
        gloo = launcher.endswith("--gloo")
        if gloo and environ.get("HOROVOD_CONTROLLER", "gloo") != "gloo":
            continue
        return LaunchInfo(
            launcher=launcher,
            rank=int(environ[rank]),
            size=int(environ[size]),
            local_rank=int(environ.get(local_rank, 0)),
            local_size=_of_this_node(environ.get(local_size, ""), int(environ.get("SLURM_NODEID", 0))),
            uses_gloo=gloo,
        )
    return LaunchInfo(launcher="python", uses_gloo=environ.get("HOROVOD_CONTROLLER") == "gloo")


def _of_this_node(counts: str, node: int) -> int | None:
    """Slurm lists the nodes' counts, repeated ones shortened: `4`, `4(x2),3` is 4, 4, 3. None where nothing is said."""
    per_node: list[int] = []
    for entry in filter(None, counts.split(",")):
        count, _, repeats = entry.partition("(x")
        per_node += [int(count)] * int(repeats.rstrip(")") or 1)
    if not per_node:
        return None
    return per_node[node] if node < len(per_node) else per_node[0]
