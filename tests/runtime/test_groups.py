"""Ranks divided into groups: who is where, and that each communicates within itself only."""

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import why_no_direct
from hvdkit.runtime import World, alone, divide_ranks, gather_objects


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_every_rank_is_in_one_group(world: World, groups: int) -> None:
    group, members = divide_ranks(world, groups)
    assert len(members) == min(groups, world.size)
    assert [rank for ranks in members for rank in ranks] == list(range(world.size))
    assert max(map(len, members)) - min(map(len, members)) <= 1
    assert members[group.number] == group.ranks and group.ranks[group.rank()] == world.rank
    assert (group.world.rank, group.world.size) == (group.rank(), group.size())
    if world.comm is not None:
        assert gather_objects(group.world, world.rank) == list(group.ranks)
    assert gather_objects(alone(world), world.rank) == [world.rank]


def test_an_optimizer_aggregates_within_its_group(world: World) -> None:
    """Rank r's gradient is r: each group ends with the mean of its own ranks."""
    group, _ = divide_ranks(world, 2)
    if group.size() > 1 and why_no_direct(world):
        pytest.skip("Gloo has no groups of several ranks")
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0), process_set=group)
    (weight * world.rank).sum().backward()
    optimizer.step()
    assert weight.tolist() == pytest.approx([-sum(group.ranks) / group.size()] * 3)
