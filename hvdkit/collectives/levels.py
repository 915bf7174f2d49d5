"""Sums of which the way between nodes is the caller's own: exact within each node, by slices, through shared memory.

Every carrying rank of a node gets the node's sum of one slice, does with its peers on the other nodes what it likes
(send it in fewer bits), and the node shares the results.
"""

from collections.abc import Sequence

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.reduction import Reduction, split_evenly
from hvdkit.collectives.shared_memory import SharedMemory
from hvdkit.collectives.wide import as_bytes


class Levels:
    """The two levels of `group`; `memory` is the node's."""

    def __init__(self, group: Group, memory: SharedMemory) -> None:
        self._group, self._memory = group, memory
        self.nodes = len(group.members)
        self.node_number = group.node_number
        self.carries = group.across is not None
        """Whether this rank has a slice."""

    def slices(self, count: int, multiple: int) -> tuple[slice, list[int]]:
        """This rank's slice of `count` values, and the lengths of all the node's: multiples but for the last one."""
        bounds = split_evenly(count, self._group.carriers, multiple)
        bounds += [(count, count)] * (self._group.node_size - len(bounds))
        return slice(*bounds[self._group.node_index]), [stop - start for start, stop in bounds]

    def reduce_scatter(self, data: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The node's sum of this rank's slice of `data`, which keeps its values. Collective over the node."""
        out = data.new_empty(counts[self._group.node_index])
        self._memory.reduce_scatter(data, out, counts, Reduction("sum"))
        return out

    def exchange(self, payload: torch.Tensor) -> list[torch.Tensor]:
        """The `payload`, (n,), of this rank's peer on every node, in the order of nodes. For ranks that carry."""
        assert self._group.across is not None
        gathered = payload.new_empty(self.nodes * payload.numel())
        self._group.across.Allgather(as_bytes(payload), as_bytes(gathered))
        return list(gathered.view(self.nodes, -1).unbind())

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """Put the slices of this node's ranks into `out`. Collective over the node."""
        self._memory.all_gather(part, out, counts)

    def all_agree(self, mine: bool) -> bool:
        """Whether `mine` is true on all ranks of the node. Collective over the node."""
        agreed: bool = self._group.node.allreduce(mine, op=self._group.mpi.LAND)
        return agreed
