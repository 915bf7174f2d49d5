"""Two levels: the ranks of a node are one worker, whose gradients are averaged in every step.

They then hold the same weights, so the exchange over all ranks is one between nodes: the hierarchical collectives send
a node's sum across the wire once.
"""

from collections.abc import Sequence
from typing import Any

from hvdkit.runtime import World, gather_objects
from hvdkit.runtime.process_sets import process_set_of


def node_numbers(world: World) -> list[int]:
    """For each rank, the number of its node. Collective."""
    names = gather_objects(world, world.hostname)
    return [names.index(name) for name in names]


def node_set(world: World, nodes: Sequence[int]) -> Any:
    """The process set of the ranks with this rank's number in `nodes`, one per rank. Collective.

    None for nodes of one rank each. Raises HvdkitError on all ranks unless `hvd.init(process_sets="dynamic")` has made
    sets possible.
    """
    members = [[rank for rank, node in enumerate(nodes) if node == number] for number in sorted(set(nodes))]
    if len(members) == world.size:
        return None
    # Every rank makes all sets, in one order.
    sets = [process_set_of(ranks) for ranks in members]
    return next(chosen for chosen, ranks in zip(sets, members, strict=True) if world.rank in ranks)
