"""Collectives take no more threads than the rank's share, and leave a script that wants more its own."""

from collections.abc import Iterator

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.collectives.threads import limit_threads, restore_threads
from hvdkit.runtime import World


@pytest.fixture
def many(world: World) -> Iterator[int]:
    """More threads than this rank's share; undone at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(world.threads + 2)
    yield world.threads + 2
    torch.set_num_threads(before)


def test_a_limit_and_its_end(world: World, many: int) -> None:
    asked = limit_threads(1)
    assert (asked, torch.get_num_threads()) == (many, 1)
    assert limit_threads(1) is None
    restore_threads(asked)
    assert torch.get_num_threads() == many


def test_collectives_leave_the_number_of_threads_as_it_was(world: World, many: int) -> None:
    if why_no_direct(world):
        pytest.skip("hvdkit's own algorithms need MPI")
    algorithms, within = direct_collectives(world).algorithms, []

    def choose(collective: str, nbytes: int) -> str:
        within.append(torch.get_num_threads())
        return "mpi"

    chosen, algorithms.choose = algorithms.choose, choose
    hvd.allreduce_(torch.ones(11, 13, 17), op=hvd.Sum, strategy="auto", name="how many threads")
    algorithms.choose = chosen
    assert within == [world.threads]
    tensor = torch.ones(200_000)
    hvd.allreduce_(tensor, op=hvd.Sum, strategy="auto")
    assert (tensor == world.size).all()
    assert torch.get_num_threads() == many
    with pytest.raises(ValueError, match="no such algorithm"):
        hvd.allreduce_(tensor, op=hvd.Sum, strategy="none")
    assert torch.get_num_threads() == many
