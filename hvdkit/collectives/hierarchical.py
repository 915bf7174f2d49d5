"""Two levels: shared memory inside each node, another algorithm between the nodes, blocks in a pipeline.

Every carrying rank of a node owns a slice of each block: it adds the slice up over its node, reduces it with the ranks
at its place on the other nodes, and leaves the result for its node. So all of a node's bytes cross the wire once for
each neighbour instead of once per rank, and several blocks are under way, that the wire need not wait for memory.
A reduce-scatter is a reduction to every rank of its part, an all-gather a broadcast of every rank's, in one pipeline.

Source: the two-level schemes of M. Bayatpour et al., "Scalable Reduction Collectives with Data Partitioning-based
Multi-Leader Design", SC 2017.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.levels import Levels
from hvdkit.collectives.mpi_library import mpi_all_reduce
from hvdkit.collectives.reduction import Reduction, rounds, starts_of
from hvdkit.collectives.ring import ring_all_reduce
from hvdkit.collectives.shared_memory import Block, SharedMemory
from hvdkit.collectives.steps import Steps, drive_together
from hvdkit.collectives.tree import tree_all_reduce, tree_broadcast, tree_reduce
from hvdkit.collectives.window import NoRoomError

_DEPTH = 8
BLOCK_BYTES = 512 * 2**10
"""As good as any of 4 to 16 lanes and 0.25 to 4 MB between two hosts of two ranks on 1 Gbit/s; long blocks lose."""

Outer = Callable[[Any, torch.Tensor, Reduction, int], Steps]
OUTER: dict[str, Outer] = {"ring": ring_all_reduce, "tree": tree_all_reduce, "mpi": mpi_all_reduce}


class _Lane:
    """What one block under way has for itself: slots, and communicators, whose calls no other block mixes with."""

    def __init__(self, group: Group, memory: SharedMemory) -> None:
        self.memory = memory
        self.node = group.node.Dup()
        self.across = None if group.across is None else group.across.Dup()

    def close(self) -> None:
        self.memory.close()
        self.node.Free()
        if self.across is not None:
            self.across.Free()


BlockSteps = Callable[[_Lane, Block], Steps]


class Hierarchical:
    """See the module; `outer` names the algorithm between nodes."""

    name = "hierarchical"

    def __init__(self, group: Group, outer: str = "ring") -> None:
        self._group = group
        self._outer = OUTER[outer]
        self._lanes = [_Lane(group, memory) for memory in _memories(group)]
        self.levels = Levels(group, self._lanes[0].memory)

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

        self._run((piece, steps) for data in tensors for piece in _pieces(data))

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """See `Algorithm`. Each node sends its partial sums once."""
        is_root, steps = self._group.index == root, self._reduce_to(root, reduction)
        self._run((piece if is_root else piece.clone(), steps) for piece in _pieces(data))

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`. The root's node sends every byte once to each node below it in the tree."""
        steps = self._broadcast_from(root)
        self._run((piece, steps) for piece in _pieces(data))

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """See `Algorithm`. Each node sends its partial sums of the other nodes' parts once."""
        steps = [self._reduce_to(rank, reduction) for rank in range(self._group.size)]
        starts = starts_of(counts)

        def begin(rank: int, first: int, length: int) -> tuple[torch.Tensor, BlockSteps]:
            source = data[starts[rank] + first :][:length]
            is_mine = rank == self._group.index
            return out[first : first + length].copy_(source) if is_mine else source.clone(), steps[rank]

        self._run(itertools.starmap(begin, self._in_turns(counts, data.element_size())))

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`. Every byte is sent once to each node but its own."""
        steps = [self._broadcast_from(rank) for rank in range(self._group.size)]
        starts = starts_of(counts)
        out[starts[self._group.index] :][: part.numel()].copy_(part)
        turns = self._in_turns(counts, part.element_size())
        self._run((out[starts[rank] + first :][:length], steps[rank]) for rank, first, length in turns)

    def _in_turns(self, counts: Sequence[int], itemsize: int) -> Iterator[tuple[int, int, int]]:
        """Blocks of all ranks' parts, as rank, place in its part and length; nodes take turns, so no link waits."""
        places = itertools.zip_longest(*self._group.members)
        order = [rank for ranks in places for rank in ranks if rank is not None]
        for first, lengths in rounds(counts, itemsize, BLOCK_BYTES):
            yield from ((rank, first, lengths[rank]) for rank in order if lengths[rank])

    def _reduce_to(self, root: int, reduction: Reduction) -> BlockSteps:
        """Steps that reduce a block in place on `root`; what the other ranks pass is lost."""
        inner, plain = self._parts_of(reduction)
        node = self._node_of(root)

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

        return steps

    def _broadcast_from(self, root: int) -> BlockSteps:
        """Steps that put the block of `root` into everyone's."""
        node = self._node_of(root)
        is_root, root_place = self._group.index == root, self._group.members[node].index(root)

        def steps(lane: _Lane, block: Block) -> Steps:
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

        return steps

    def _run(self, blocks: Iterable[tuple[torch.Tensor, BlockSteps]]) -> None:
        """Do the steps of all blocks in the pipeline; every rank of a node has as many, of the same lengths."""
        owners = self._group.carriers

        def begin(number: int, values: torch.Tensor, steps: BlockSteps) -> Steps:
            lane = self._lanes[number % _DEPTH]
            (block,) = lane.memory.blocks(values, owners)
            return steps(lane, block)

        drive_together(self._group.mpi, (begin(number, *block) for number, block in enumerate(blocks)), _DEPTH)

    def _parts_of(self, reduction: Reduction) -> tuple[Reduction, Reduction]:
        return reduction.over(self._group.members[self._group.node_number]), Reduction(reduction.op)

    def _node_of(self, rank: int) -> int:
        return next(number for number, ranks in enumerate(self._group.members) if rank in ranks)

    def close(self) -> None:
        """Free windows and communicators. Collective."""
        for lane in self._lanes:
            lane.close()


def _memories(group: Group) -> list[SharedMemory]:
    """The lanes' shared memory. Collective; raises NoRoomError on all ranks if any node has no room."""
    made: list[SharedMemory] = []
    problem = None
    try:
        for _ in range(_DEPTH):
            made.append(SharedMemory(group, BLOCK_BYTES))
    except NoRoomError as error:
        problem = str(error)
    problems = [text for text in group.comm.allgather(problem) if text]
    if problems:
        for memory in made:
            memory.close()
        raise NoRoomError(problems[0])
    return made


def _pieces(data: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Blocks of `data`; none where it is empty."""
    return data.split(BLOCK_BYTES // data.element_size()) if data.numel() else ()
