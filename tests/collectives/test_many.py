"""Many tensors in one direct all-reduce; the oracle is a closed form over the ranks."""

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import DirectCollectives, direct_collectives
from hvdkit.collectives.connect import why_no_direct
from hvdkit.errors import CollectiveMismatchError
from hvdkit.runtime import World

SHAPES = ((300_001,), (3,), (), (0,), (500, 400))


@pytest.fixture
def direct(world: World) -> DirectCollectives:
    if why := why_no_direct(world):
        pytest.skip(why)
    return direct_collectives(world)


def bring(rank: int) -> list[torch.Tensor]:
    """Of every shape, whole numbers that differ by rank and place; one is not contiguous."""
    made = [torch.full(shape, float(rank + 1)) + place for place, shape in enumerate(SHAPES)]
    made[-1] = made[-1].t()
    return made


@pytest.mark.parametrize("strategy", ["auto", "mpi", "ring"])
def test_each_is_reduced_in_place(world: World, direct: DirectCollectives, strategy: str) -> None:
    tensors = bring(world.rank)
    direct.with_strategy(strategy).all_reduce_many_(tensors, name=f"many by {strategy}")
    ranks = world.size
    for place, (tensor, shape) in enumerate(zip(tensors, (*SHAPES[:-1], (400, 500)), strict=True)):
        assert tensor.shape == shape
        assert bool((tensor == ranks * (ranks + 1) / 2 + place * ranks).all())


def test_weights(world: World, direct: DirectCollectives) -> None:
    tensors = bring(world.rank)
    direct.all_reduce_many_(tensors, op="average", weight=world.rank + 0.5, name="weighted")
    weights = [rank + 0.5 for rank in range(world.size)]
    mean = sum(weight * (rank + 1) for rank, weight in enumerate(weights)) / sum(weights)
    for place, tensor in enumerate(tensors):
        torch.testing.assert_close(tensor, torch.full_like(tensor, mean + place))


def test_a_rank_that_has_joined_brings_zeros(world: World, direct: DirectCollectives) -> None:
    last = world.size - 1
    if world.rank < last:
        tensors = bring(world.rank)
        direct.all_reduce_many_(tensors, name="without the last")
        for place, tensor in enumerate(tensors):
            assert bool((tensor == last * (last + 1) / 2 + place * last).all())
    hvd.join()


def test_other_lengths_are_an_error_on_all_ranks(world: World, direct: DirectCollectives) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot disagree with itself")
    tensors = bring(world.rank)
    if world.rank == 0:
        tensors[0] = tensors[0][1:]
    with pytest.raises(CollectiveMismatchError, match=r"(?s)rank 0: all_reduce_many.*300000.*rank 1"):
        direct.all_reduce_many_(tensors, name="mismatch")
