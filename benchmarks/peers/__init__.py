"""The jobs that a collective's benchmark starts, one file per peer, and the settings that each is run with.

Each is launched as its users launch it: Horovod and hvdkit without binding ranks to cores, as `horovodrun` and `hvdkit
run` do (an engine's thread would share its rank's core), Open MPI as `mpirun` does by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

KIB, MIB = 1024, 1024**2

UNBOUND = ("--bind-to", "none", "--map-by", "slot")
AS_HOROVODRUN = (*UNBOUND, "--mca", "pml", "ob1", "--mca", "btl", "^openib")
"""What horovodrun tells mpirun of ranks on this machine."""
HVDKIT = "hvdkit"
_OWN = ("mpi", "ring", "tree", "shared_memory", "hierarchical", "auto")
SHARED = "shared"
TRIAD = "triad"


@dataclass(frozen=True)
class PeerJob:
    """One job: `script` in this folder, with `words` behind its name, under `mpirun LAUNCH`."""

    name: str
    script: str
    launch: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    settings: str = "default settings"
    """For readers; `env` is listed beside it."""

    def describe(self) -> str:
        """The settings, in one line."""
        variables = " ".join(f"{key}={value}" for key, value in self.env.items())
        return "; ".join(filter(None, (self.settings, variables, " ".join(("mpirun", *self.launch)))))


def peer_jobs(collective: str, ranks: int) -> list[PeerJob]:
    """All jobs of a benchmark of `collective` on `ranks` ranks of this machine."""
    return [
        PeerJob(HVDKIT, "with_hvdkit.py", UNBOUND, words=_OWN, settings="as a user's script calls it"),
        # An engine that has just been used would take time from the next algorithm's turn.
        PeerJob(f"{HVDKIT} horovod", "with_hvdkit.py", UNBOUND, words=("horovod",), settings="the same, no strategy="),
        PeerJob(f"{HVDKIT} {SHARED}", "with_hvdkit.py", UNBOUND, words=(SHARED,),
                settings="strategy=auto on buffers of hvd.empty_shared()"),
        PeerJob("Horovod", "stock_horovod.py", AS_HOROVODRUN,
                settings="import horovod.torch, default settings, launched as horovodrun does"),
        PeerJob("Open MPI", "open_mpi.py", settings="mpi4py, default settings"),
        _tuned_open_mpi(collective, ranks),
        PeerJob("Gloo", "torch_gloo.py", UNBOUND, settings="torch.distributed, default settings, as torchrun: unbound"),
        PeerJob(TRIAD, "triad.py", settings="a = b + s c by torch, one thread per rank"),
    ]  # fmt: skip


def _tuned_open_mpi(collective: str, ranks: int) -> PeerJob:
    """Open MPI with the best settings found by trying its algorithms (mean over ranks, 1 KiB to 128 MiB, 2 cores).

    The segmented ring with segments of 1 MiB took a third of the default's time for large all-reduces. For broadcast
    the basic linear algorithm was best among ranks 4, and no algorithm was better than the default among 2; for
    all-gather the ring among 4, the default among 2. No setting made a large reduce-scatter faster, but small ones are
    by MPI_Reduce_scatter, which has algorithms that MPI_Reduce_scatter_block lacks. The vader transport without
    cross-memory attach (`btl_vader_single_copy_mechanism=none`) was slower at 1 MiB and above, in every case.
    """
    chosen: dict[str, tuple[int, int | None]] = {
        "allreduce": (5, MIB),
        "broadcast": (1, 0),
        "allgather": (6 if ranks == 2 else 4, None),
    }
    words: tuple[str, ...] = ()
    env: dict[str, str] = {}
    settings = "mpi4py"
    if collective in chosen:
        algorithm, segment = chosen[collective]
        variable = f"OMPI_MCA_coll_tuned_{'bcast' if collective == 'broadcast' else collective}_algorithm"
        env = {"OMPI_MCA_coll_tuned_use_dynamic_rules": "1", variable: str(algorithm)}
        if segment is not None:
            env[f"{variable}_segmentsize"] = str(segment)
    else:
        words = (str(4 * MIB),)
        settings += ", MPI_Reduce_scatter in place of MPI_Reduce_scatter_block below 4 MiB"
    return PeerJob("Open MPI tuned", "open_mpi.py", env=env, words=words, settings=settings)
