"""Which rank takes which samples: against a plain permutation cut by hand."""

import itertools

import numpy as np
import pytest

from hvdkit.data.sampler import Position, ShardedSampler, evaluation_indices, share


def samplers(size: int, n_samples: int, global_batch: int, seed: int = 0) -> list[ShardedSampler]:
    return [ShardedSampler(n_samples, global_batch, rank, size, seed) for rank in range(size)]


def epoch_order(n_samples: int, global_batch: int, size: int, epoch: int, seed: int = 0) -> list[int]:
    """What all ranks together take in `epoch`, in order."""
    taken: list[int] = []
    position = Position(epoch)
    ranks = samplers(size, n_samples, global_batch, seed)
    while position.epoch == epoch:
        for sampler in ranks:
            taken.extend(sampler.indices(position).tolist())
        position = ranks[0].following(position)
    assert position == Position(epoch + 1)
    return taken


@pytest.mark.parametrize(
    ("n_samples", "global_batch"), [(1, 1), (1, 8), (7, 3), (100, 8), (101, 8), (64, 64), (10, 99)]
)
def test_all_ranks_together_take_one_permutation_whatever_their_number(n_samples: int, global_batch: int) -> None:
    for epoch in (0, 1, 5):
        alone = epoch_order(n_samples, global_batch, 1, epoch)
        assert sorted(alone) == list(range(n_samples))
        for size in range(2, 9):
            assert epoch_order(n_samples, global_batch, size, epoch) == alone


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    order = epoch_order(50, 8, 1, 0, seed=3)
    assert order == epoch_order(50, 11, 2, 0, seed=3), "the batch only cuts the order"
    assert order != list(range(50))
    others = [epoch_order(50, 8, 1, 1, seed=3), epoch_order(50, 8, 1, 0, seed=4)]
    assert all(sorted(other) == sorted(order) and other != order for other in others)


def test_ranks_get_near_equal_parts_also_of_the_uneven_tail() -> None:
    for size in range(1, 9):
        ranks = samplers(size, 101, 8)
        for position in ranks[0].positions(Position(), 13):
            counts = [len(sampler.indices(position)) for sampler in ranks]
            assert max(counts) - min(counts) <= 1
            assert sum(counts) == min(8, 101 - position.consumed)
    last = [len(sampler.indices(Position(0, 96))) for sampler in samplers(8, 101, 8)]
    assert sum(last) == 5 and min(last) == 0, "more ranks than samples: some get none"


def test_positions_go_on_over_epochs() -> None:
    sampler = ShardedSampler(20, 8, 0, 1, 0)
    assert sampler.steps_per_epoch == 3
    assert list(sampler.positions(Position(), 5)) == [
        Position(0, 0),
        Position(0, 8),
        Position(0, 16),
        Position(1, 0),
        Position(1, 8),
    ]


def test_resume_with_another_global_batch_loses_and_repeats_nothing() -> None:
    before = ShardedSampler(50, 8, 0, 1, 9)
    taken: list[int] = []
    position = Position()
    for _ in range(3):
        taken.extend(before.indices(position))
        position = before.following(position)
    ranks = samplers(3, 50, 12, seed=9)
    while position.epoch == 0:
        for sampler in ranks:
            taken.extend(sampler.indices(position))
        position = ranks[0].following(position)
    assert taken == epoch_order(50, 50, 1, 0, seed=9)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("n_samples", [0, 1, 5, 30, 31])
def test_evaluation_takes_each_sample_once_in_order(n_samples: int, batch_size: int) -> None:
    for size in range(1, 9):
        batches = [list(evaluation_indices(n_samples, batch_size, rank, size)) for rank in range(size)]
        flat = [int(index) for rank in batches for batch in rank for index in batch]
        assert flat == list(range(n_samples))
        assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)


def test_share_of_very_many_is_exact() -> None:
    pieces = [share(10**15 + 1, rank, 7) for rank in range(7)]
    assert pieces[0][0] == 0 and pieces[-1][1] == 10**15 + 1
    assert all(left[1] == right[0] for left, right in itertools.pairwise(pieces))


def test_what_cannot_be_is_an_error() -> None:
    for arguments, reason in (
        ((0, 8, 0, 1, 0), "n_samples=0"),
        ((8, 0, 0, 1, 0), "global_batch=0"),
        ((8, 8, 2, 2, 0), r"rank=2 is not a rank of a world of size 2; use 0\.\.1"),
        ((8, 8, 0, 1, -1), "seed=-1"),
    ):
        with pytest.raises(ValueError, match=reason):
            ShardedSampler(*arguments)
    with pytest.raises(ValueError, match="outside an epoch of 8 samples"):
        ShardedSampler(8, 8, 0, 1, 0).indices(Position(0, 8))
    with pytest.raises(ValueError, match="batch_size=0"):
        list(evaluation_indices(8, 0, 0, 1))


def test_indices_are_of_the_documented_dtype() -> None:
    assert ShardedSampler(8, 8, 0, 1, 0).indices(Position()).dtype == np.int64
    assert next(evaluation_indices(8, 8, 0, 1)).dtype == np.int64
