"""A group of ranks that hvdkit's own collectives run on: its communicator, and how its ranks lie on nodes."""

from collections.abc import Sequence
from typing import Any

from hvdkit.runtime.mpi import load_mpi


class Group:
    """The ranks of `comm` (an mpi4py communicator, of which the group makes its own duplicates). Collective.

    `nodes` overrides which ranks share memory: one number per rank, equal for ranks of one node. By default MPI says.
    """

    world_ranks: tuple[int, ...] | None = None
    """The ranks of the world that are in it; None for all."""

    def __init__(self, comm: Any, nodes: Sequence[int] | None = None) -> None:
        mpi = load_mpi()
        self.mpi = mpi
        self.comm = comm.Dup()
        self.size: int = comm.Get_size()
        self.index: int = comm.Get_rank()
        if nodes is None:
            self.node = self.comm.Split_type(mpi.COMM_TYPE_SHARED, key=self.index)
        else:
            self.node = self.comm.Split(color=nodes[self.index], key=self.index)
        self.node_size: int = self.node.Get_size()
        self.node_index: int = self.node.Get_rank()
        members = self.node.allgather(self.index)
        self.members: tuple[tuple[int, ...], ...] = tuple(sorted(set(map(tuple, self.comm.allgather(members)))))
        """The ranks of each node, nodes in the order of their first ranks."""
        self.node_number = self.members.index(tuple(members))
        self.carriers = min(len(ranks) for ranks in self.members)
        """How many ranks of each node carry slices to the other nodes."""
        carries = self.node_index < self.carriers
        color = self.node_index if carries else mpi.UNDEFINED
        across = self.comm.Split(color=color, key=self.node_number)
        self.across = across if carries else None
        """The ranks with this rank's place on each node, in the order of the nodes; None if it carries none."""

    @property
    def is_one_node(self) -> bool:
        """Whether all ranks share memory."""
        return len(self.members) == 1

    def close(self) -> None:
        """Free the communicators. Collective."""
        for comm in (self.across, self.node, self.comm):
            if comm is not None:
                comm.Free()
