"""A rank that has called `hvd.join()` brings nothing to compressed sums, and the others lose nothing by it."""

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.optim.compression import BucketCompressor
from hvdkit.runtime import World, gather_objects
from hvdkit.runtime.dropin.functions import begin_join, end_join
from tests.optim.compression.test_all_kinds import SHAPES, contribution, count, every_compressor


@every_compressor
def test_nothing_of_the_others_is_lost(world: World, compressor: BucketCompressor) -> None:
    if why_no_direct(world) or world.size == 1:
        pytest.skip("needs MPI and two ranks")
    state, values, steps = compressor.for_bucket(SHAPES, torch.float32, "cpu"), count(SHAPES), 4
    received = torch.zeros(values, dtype=torch.float64)
    collectives = direct_collectives(world)
    for step in range(steps if world.rank else 0):
        flat = contribution(world.rank, step, values)
        state.sum_(flat, "test", collectives)
        received += flat.double()
    hvd.join()
    kept = [entry["error"].double().flatten() if "error" in entry else torch.zeros(shape.numel(), dtype=torch.float64)
            for entry, shape in zip(state.state_dict(), SHAPES, strict=True)]  # fmt: skip
    errors = torch.stack(gather_objects(world, torch.cat(kept))).sum(dim=0)
    if world.rank:
        wanted = sum(
            contribution(rank, step, values).double() for rank in range(1, world.size) for step in range(steps)
        )
        torch.testing.assert_close(received + errors, wanted, rtol=0, atol=2e-5)


def test_what_cannot_go_on_after_a_join_fails_on_all_ranks(world: World) -> None:
    if why_no_direct(world) or world.size == 1:
        pytest.skip("needs MPI and two ranks")
    tensor = torch.ones(10)
    with pytest.raises(ValueError, match=r"broadcast cannot go on after a rank has called join\(\)"):
        if world.rank == 0:
            hvd.join()
        else:
            hvd.broadcast_(tensor, 1, strategy="mpi")
    if world.rank:
        end_join(begin_join(-1))  # Horovod's engine still has rank 0 down as joined
    hvd.allreduce_(tensor, op=hvd.Sum, strategy="mpi")
    assert (tensor == world.size).all()
    tensor = hvd.allreduce(torch.ones(3), op=hvd.Sum)
    assert (tensor == world.size).all()
