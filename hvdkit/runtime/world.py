"""The `World`: who this process is among the ranks of the job. Made once by `init()`, passed as an argument."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hvdkit.runtime.watch.collectives import Watch

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class World:
    """The ranks of a running job, as seen from this one.

    `local_*` count the ranks of this node, `cross_*` the nodes that have a rank with this local rank, as in
    Horovod. The communicators are hvdkit's own duplicates (never Horovod's) and None under a Gloo launch, where
    only Horovod's engine can communicate. `generation` grows with every `init()` and `join()` of this process, so that
    what was agreed between the ranks of an earlier world (after an elastic reset, say) is recognised as stale.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    backend: str
    """`"mpi"` or `"gloo"`: the controller of Horovod's engine."""
    hostname: str
    device: torch.device
    """The GPU of this local rank where torch has CUDA and Horovod has NCCL, otherwise the CPU."""
    threads: int
    """CPU threads that are this rank's fair share of the cores it may run on; at least 1."""
    generation: int
    comm: "MPI.Comm | None" = None
    local_comm: "MPI.Comm | None" = None
    cross_comm: "MPI.Comm | None" = None
    is_whole: bool = True
    """Whether these are all ranks that `init()` started, not a group of them."""
    watch: Watch = field(default_factory=Watch, repr=False, compare=False)
    """Told of each blocking collective that does not run in Horovod's engine."""
    attachments: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What other packages made for this world, each with a `close()`, which `shutdown()` calls in order."""

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that talks to the user."""
        return self.rank == 0


def usable_cores() -> frozenset[int]:
    """The cores that the kernel lets this process run on (its affinity mask)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def fair_threads(mine: frozenset[int], masks: list[frozenset[int]]) -> int:
    """Threads for a rank that may use the cores `mine`, when `masks` are those of all ranks of its node.

    A core that k ranks may use counts 1/k for each. Two ranks pinned to a core each get 1 thread; two unpinned
    ranks on eight cores get 4.
    """
    share = sum(1 / max(1, sum(core in mask for mask in masks)) for core in mine)
    return max(1, int(share + 1e-6))
