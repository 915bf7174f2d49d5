"""Groups: the ranks of a world divided, each group for work of its own."""

from dataclasses import dataclass, replace
from itertools import pairwise

from hvdkit.runtime.world import World


@dataclass(frozen=True)
class RankGroup:
    """Some ranks of a world. hvdkit's own collectives and `DistributedOptimizer` take it where they take a Horovod
    `ProcessSet`; Horovod's engine does not know it, so that it cannot work in a group of several ranks."""

    number: int
    ranks: tuple[int, ...]
    world: World
    """The group as a world, seen from this rank, which is in it."""

    @property
    def process_set_id(self) -> str:
        """As a process set's: tells it from the others."""
        return f"group {self.number}"

    def size(self) -> int:
        """Its number of ranks."""
        return len(self.ranks)

    def rank(self) -> int:
        """This rank's place in it."""
        return self.world.rank

    def included(self) -> bool:
        """Whether this rank is in it."""
        return True

    def close(self) -> None:
        """Free its communicator. Collective over its ranks."""
        if self.world.comm is not None:
            self.world.comm.Free()


def divide_ranks(world: World, groups: int) -> tuple[RankGroup, list[tuple[int, ...]]]:
    """Divide the ranks into `groups` contiguous, near-equal groups, fewer if there are fewer ranks. Collective.

    Returns this rank's group, which is closed with the world, and the ranks of each. A group of several ranks has no
    communicator where the world has none (under Gloo): it cannot communicate then.
    """
    groups = min(groups, world.size)
    cuts = [world.size * number // groups for number in range(groups + 1)]
    members = [tuple(range(begin, end)) for begin, end in pairwise(cuts)]
    number = next(number for number, ranks in enumerate(members) if world.rank in ranks)
    ranks = members[number]
    comm = world.comm.Split(color=number, key=world.rank) if world.comm is not None else None
    inner = replace(alone(world), rank=ranks.index(world.rank), size=len(ranks), comm=comm)
    group = RankGroup(number, ranks, inner)
    world.attachments["group", number, ranks] = group
    return group, members


def alone(world: World) -> World:
    """This rank as a world of one, in which nothing communicates."""
    return replace(
        world, rank=0, size=1, local_rank=0, local_size=1, cross_rank=0, cross_size=1,
        comm=None, local_comm=None, cross_comm=None, attachments={}, is_whole=False,
    )  # fmt: skip
