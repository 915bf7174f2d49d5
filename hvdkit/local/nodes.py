"""Two levels: the ranks of a node are one worker, whose gradients are averaged in every step.

They then hold the same weights, so the exchange over all ranks is one between nodes: the hierarchical collectives send
a node's sum across the wire once.
"""

from collections.abc import Sequence
from typing import Any

from hvdkit.runtime import World, gather_objects
from hvdkit.runtime.process_sets import process_set_of, remove_process_set


def node_numbers(world: World) -> list[int]:
    """For each rank, the number of its node. Collective."""
    names = gather_objects(world, world.hostname)
    return [names.index(name) for name in names]


class NodeSets:
    """The process sets of the nodes, one per node: made on entering, and those made by it removed again by `remove`."""

    def __init__(self, world: World, nodes: Sequence[int]) -> None:
        """`nodes`: a number per rank, the same for ranks of one node."""
        self._world = world
        members = [[rank for rank, node in enumerate(nodes) if node == number] for number in sorted(set(nodes))]
        self._members = members if len(members) < world.size else []
        self._made: list[Any] = []

    def make(self) -> Any:
        """This rank's set, None for nodes of one rank each. Collective.

        Raises HvdkitError on all ranks unless `hvd.init(process_sets="dynamic")` has made sets possible.
        """
        mine = None
        for ranks in self._members:  # every rank makes all sets, in one order
            chosen, is_new = process_set_of(ranks)
            if is_new:
                self._made.append(chosen)
            if self._world.rank in ranks:
                mine = chosen
        return mine

    def remove(self) -> None:
        """Remove the sets that were not there before. Collective."""
        for chosen in self._made:
            remove_process_set(chosen)
        self._made.clear()
