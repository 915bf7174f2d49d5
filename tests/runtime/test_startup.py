"""Ranks find each other, agree, start twice, and fail together."""

import pytest

from hvdkit import runtime
from hvdkit.errors import DataError
from hvdkit.runtime import World


def test_objects_arrive_in_rank_order(world: World) -> None:
    assert runtime.gather_objects(world, world.rank) == list(range(world.size))
    assert runtime.share_object(world, world.rank, root=world.size - 1) == world.size - 1


def test_an_error_on_one_rank_is_raised_on_all(world: World) -> None:
    fault = DataError("no such file") if world.rank == world.size - 1 else None
    with pytest.raises(DataError, match="no such file"):
        runtime.raise_together(world, fault)
    runtime.raise_together(world, None)
