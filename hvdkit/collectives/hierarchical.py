"""Two levels: shared memory inside each node, another algorithm between the nodes, blocks in a pipeline.

Every carrying rank of a node owns a slice of each block: it adds the slice up over its node, reduces it with the ranks
at its place on the other nodes, and leaves the result for its node. So all of a node's bytes cross the wire once for
each neighbour instead of once per rank, and several blocks are under way, that the wire need not wait for memory.

Source: the two-level schemes of M. Bayatpour et al., "Scalable Reduction Collectives with Data Partitioning-based
Multi-Leader Design", SC 2017.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.mpi_library import mpi_all_reduce
from hvdkit.collectives.reduction import Reduction
from hvdkit.collectives.ring import ring_all_reduce
from hvdkit.collectives.shared_memory import Block, SharedMemory
from hvdkit.collectives.steps import Steps, drive_together
from hvdkit.collectives.tree import tree_all_reduce, tree_broadcast, tree_reduce

_DEPTH = 8
BLOCK_BYTES = 512 * 2**10
"""As good as any of 4 to 16 lanes and 0.25 to 4 MB between two hosts of two ranks on 1 Gbit/s; long blocks lose."""

Outer = Callable[[Any, torch.Tensor, Reduction, int], Steps]
OUTER: dict[str, Outer] = {"ring": ring_all_reduce, "tree": tree_all_reduce, "mpi": mpi_all_reduce}


class _Lane:
    """What one block under way has for itself: slots, and communicators, whose calls no other block mixes with."""

    def __init__(self, group: Group) -> None:
        self.memory = SharedMemory(group, BLOCK_BYTES)
        self.node = group.node.Dup()
        self.across = None if group.across is None else group.across.Dup()

    def close(self) -> None:
        self.memory.close()
        self.node.Free()
        if self.across is not None:
            self.across.Free()


class Hierarchical:
    """See the module; `outer` names the algorithm between nodes."""

    name = "hierarchical"

    def __init__(self, group: Group, outer: str = "ring") -> None:
        self._group = group
        self._outer = OUTER[outer]
        self._lanes = [_Lane(group) for _ in range(_DEPTH)]

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`. Each node sends what `outer` sends, once per node and not per rank."""
        self.all_reduce_many([data], reduction)

    def all_reduce_many(self, tensors: Sequence[torch.Tensor], reduction: Reduction) -> None:
        """See `OffersAll`. The pipeline does not run empty between two tensors."""
        inner, plain = self._parts_of(reduction)

        def steps(lane: _Lane, block: Block) -> Steps:
            lane.memory.contribute(block, inner)
            yield [lane.node.Ibarrier()]
            total = lane.memory.reduce_own(block, inner)
            if lane.across is not None and total.numel():
                yield from self._outer(lane.across, total, plain, 0)
                reduction.finish(total)
            lane.memory.publish(block, total)
            yield [lane.node.Ibarrier()]
            lane.memory.collect(block)

        self._run(tensors, steps)

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """See `Algorithm`."""
        inner, plain = self._parts_of(reduction)
        node = self._node_of(root)
        work = data if self._group.index == root else data.clone()

        def steps(lane: _Lane, block: Block) -> Steps:
            lane.memory.contribute(block, inner)
            yield [lane.node.Ibarrier()]
            total = lane.memory.reduce_own(block, inner)
            if lane.across is not None and total.numel():
                yield from tree_reduce(lane.across, total, node, plain, 0)
                reduction.finish(total)
            lane.memory.publish(block, total)
            yield [lane.node.Ibarrier()]
            if self._group.index == root:
                lane.memory.collect(block)

        self._run([work], steps)

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`. The root's node sends every byte once to each node below it in the tree."""
        node = self._node_of(root)
        root_place = self._group.members[node].index(root)

        def steps(lane: _Lane, block: Block) -> Steps:
            is_root = self._group.index == root
            if is_root:
                block.places.slots[root_place][: block.values.numel()].copy_(block.values)
            yield [lane.node.Ibarrier()]
            start, stop = block.places.own
            # The slice lies in the root's slot on its node, and arrives in a slot of the same number elsewhere.
            place = root_place if self._group.node_number == node else 0
            if lane.across is not None and stop > start:
                yield from tree_broadcast(lane.across, block.places.slots[place][start:stop], node, 0)
            yield [lane.node.Ibarrier()]
            if not is_root:
                block.values.copy_(block.places.slots[place][: block.values.numel()])

        self._run([data], steps)

    def _run(self, tensors: Sequence[torch.Tensor], steps: Callable[[_Lane, Block], Steps]) -> None:
        owners = self._group.carriers

        def begin(number: int, values: torch.Tensor) -> Steps:
            lane = self._lanes[number % _DEPTH]
            (block,) = lane.memory.blocks(values, owners)
            return steps(lane, block)

        pieces = [piece for data in tensors if data.numel() for piece in data.split(BLOCK_BYTES // data.element_size())]
        drive_together(self._group.mpi, (begin(number, values) for number, values in enumerate(pieces)), _DEPTH)

    def _parts_of(self, reduction: Reduction) -> tuple[Reduction, Reduction]:
        return reduction.over(self._group.members[self._group.node_number]), Reduction(reduction.op)

    def _node_of(self, rank: int) -> int:
        return next(number for number, ranks in enumerate(self._group.members) if rank in ranks)

    def close(self) -> None:
        """Free windows and communicators. Collective."""
        for lane in self._lanes:
            lane.close()
