"""The sampler alone, on worlds of any size in one process: schedules drawn at random, and each rule by itself."""

import random
from collections import Counter

import pytest

import hvdkit as hvd
from hvdkit.runtime import World

SEEDS = range(60)


class Placed(hvd.elastic.ElasticSampler):  # type: ignore[misc]
    """Says of itself which rank it has, so that all ranks fit into one process."""

    where = (0, 1)

    def _place(self) -> tuple[int, int]:
        return self.where

    def move(self, rank: int, size: int) -> "Placed":
        self.where = (rank, size)
        self.reset()
        return self


def ranks_of(samples: int, size: int, shuffle: bool = True) -> list[Placed]:
    return [Placed(range(samples), shuffle, seed=3).move(rank, size) for rank in range(size)]


def shared(state: dict[str, int], samples: int, size: int, shuffle: bool) -> list[Placed]:
    """A new world of workers, some of them new, that have taken over `state`."""
    ranks = ranks_of(samples, size, shuffle)
    for sampler in ranks:
        sampler.load_state_dict(state)
    return ranks


@pytest.mark.parametrize("seed", SEEDS)
def test_every_sample_counts_once_whatever_happens(world: World, seed: int) -> None:
    """Steps, commits, lost workers (back to the last commit) and graceful resets (nothing undone), at random."""
    draw = random.Random(seed)
    samples, batch, shuffle = draw.randint(0, 60), draw.randint(1, 5), draw.random() < 0.5
    ranks = ranks_of(samples, draw.randint(1, 6), shuffle)
    for epoch in range(3):
        trained: list[int] = []
        committed = (ranks[0].state_dict(), 0)
        is_over = False
        while not is_over:
            for sampler in ranks:
                sampler.set_epoch(epoch)  # at the top, where Horovod's begins the epoch again
            passes = [list(sampler) for sampler in ranks]
            assert len({len(taken) for taken in passes}) == 1 and len(passes[0]) == len(ranks[0])
            is_over = True
            for first in range(0, len(passes[0]), batch):
                pieces = [taken[first : first + batch] for taken in passes]
                for sampler, piece in zip(ranks, pieces, strict=True):
                    real = sampler.count(len(piece))
                    trained += piece[:real]
                    assert len(piece) - real in (0, 1)
                    sampler.record_batch(first // batch, len(piece))
                event = draw.choice(["", "", "", "commit", "lost", "graceful"])
                if event in ("commit", "graceful"):
                    committed = (ranks[0].state_dict(), len(trained))
                if event == "lost":
                    del trained[committed[1] :]
                if event in ("lost", "graceful"):
                    ranks = shared(committed[0], samples, draw.randint(1, 6), shuffle)
                    is_over = False
                    break
        assert Counter(trained) == Counter(range(samples))


def test_fillers_make_ranks_equal_and_count_for_nothing(world: World) -> None:
    ranks = ranks_of(10, 4, shuffle=False)
    assert [list(sampler) for sampler in ranks] == [[0, 4, 8], [1, 5, 9], [2, 6, 9], [3, 7, 9]]
    assert [sampler.count(3) for sampler in ranks] == [3, 3, 2, 2]
    for sampler in ranks:
        sampler.record_batch(0, 2)
    assert [sampler.count(2) for sampler in ranks] == [1, 1, 0, 0]


def test_fewer_samples_than_ranks(world: World) -> None:
    """Horovod's stops with an AssertionError here."""
    ranks = ranks_of(1, 5)
    assert [list(sampler) for sampler in ranks] == [[0]] * 5
    assert [sampler.count(1) for sampler in ranks] == [1, 0, 0, 0, 0]
    assert [list(sampler) for sampler in ranks_of(0, 3)] == [[]] * 3


def test_an_interrupted_pass_goes_on(world: World) -> None:
    """Begun again without a reset, as after `break`."""
    (sampler,) = ranks_of(6, 1, shuffle=False)
    assert list(sampler)[:2] == [0, 1]
    sampler.record_batch(0, 2)
    assert len(sampler) == 6  # what a progress bar was told stays true during the pass
    assert list(sampler) == [2, 3, 4, 5] and len(sampler) == 4


def test_an_epoch_that_was_complete_when_hosts_changed_is_not_repeated(world: World) -> None:
    (sampler,) = ranks_of(4, 1)
    sampler.load_state_dict({"epoch": 2, "processed_num": 4})
    sampler.set_epoch(2)
    assert list(sampler) == [] and len(sampler) == 0
    sampler.set_epoch(3)
    assert sorted(sampler) == [0, 1, 2, 3]


def test_the_same_epoch_again_is_a_new_pass(world: World) -> None:
    """For scripts that name no epoch, or one and the same."""
    (sampler,) = ranks_of(4, 1, shuffle=False)
    for _ in range(2):
        assert list(sampler) == [0, 1, 2, 3]
        sampler.record_batch(0, 4)
    sampler.set_epoch(0)
    assert list(sampler) == [0, 1, 2, 3]


def test_order_and_state_are_horovods(world: World) -> None:
    """A checkpoint made with Horovod's sampler goes on with hvdkit's."""
    from horovod.torch.elastic.sampler import ElasticSampler

    theirs, ours = ElasticSampler(range(12), seed=5), hvd.elastic.ElasticSampler(range(12), seed=5)
    for sampler in (theirs, ours):
        sampler.set_epoch(2)
        sampler.record_batch(0, 1)
    assert ours.state_dict() == theirs.state_dict()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(theirs.state_dict())
    real = ours.count(len(ours))
    assert list(ours)[:real] == list(theirs)[:real]
    assert len(ours) == len(theirs)
