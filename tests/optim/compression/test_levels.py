"""int8 on nodes of several ranks: exact within a node, quantised between nodes, on nodes made up."""

from collections.abc import Iterator

import pytest
import torch

from hvdkit.collectives import DirectCollectives, direct_collectives
from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.group import Group
from hvdkit.collectives.meeting import Meeting
from hvdkit.optim.compression import Int8, average_errors
from hvdkit.runtime import World, gather_objects
from tests.optim.compression.problems import DTYPES, SHAPES, assert_same_bits, contribution, count, exact_sum


@pytest.fixture(scope="module", params=["in turns", "last on its own"])
def collectives(world: World, request: pytest.FixtureRequest) -> Iterator[DirectCollectives]:
    """Over two nodes, at least one of which has several ranks."""
    if world.comm is None or world.size < 3:
        pytest.skip("needs three ranks or more, and MPI")
    in_turns = request.param == "in turns"
    group = Group(world.comm, [rank % 2 if in_turns else int(rank == world.size - 1) for rank in range(world.size)])
    direct = direct_collectives(world)
    algorithms = Algorithms(group, direct.algorithms._made["horovod"])
    made = DirectCollectives(group, algorithms, Meeting(group.mpi, group.comm, ("mpi", "hierarchical")), world.watch)
    assert made.has_levels
    yield made
    algorithms._made.pop("horovod")
    made.close()


def residuals(world: World, state: object) -> list[torch.Tensor]:
    """Every rank's, (n,) float64."""
    mine = torch.cat([entry["error"].double().flatten() for entry in state.state_dict()])  # type: ignore[attr-defined]
    return gather_objects(world, mine)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [7, 512])
def test_nothing_is_lost(world: World, collectives: DirectCollectives, dtype: torch.dtype, block: int) -> None:
    """What was received and what is kept add up to the exact sums, also after residuals were averaged over ranks."""
    state, values = Int8(block).for_bucket(SHAPES, dtype, "cpu"), count(SHAPES)
    received, wanted = torch.zeros(2, values, dtype=torch.float64)
    for step in range(6):
        flat = contribution(world.rank, step, values, dtype)
        state.sum_(flat, "test", collectives)
        assert_same_bits(world, flat)
        received += flat.double()
        wanted += exact_sum(world.size, step, values, dtype)
        if step == 3:
            state.load_state_dict(average_errors(state.state_dict(), "errors", collectives))
    unit = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-11
    kept = torch.stack(residuals(world, state)).sum(dim=0)
    torch.testing.assert_close(received + kept, wanted, rtol=0, atol=60 * unit)


def test_error_is_half_a_step_of_each_node(world: World, collectives: DirectCollectives) -> None:
    """The oracle quantises the exact sums of nodes; only ranks that carry keep something, each of its own slice."""
    values, block = 20_001, 100
    state = Int8(block).for_bucket([torch.Size((values,))], torch.float32, "cpu")
    flat = contribution(world.rank, 0, values)
    state.sum_(flat, "test", collectives)
    bound = torch.zeros(values, dtype=torch.float64)
    for ranks in collectives.group.members:
        of_node = torch.stack([contribution(rank, 0, values).double() for rank in ranks]).sum(dim=0)
        padded = torch.nn.functional.pad(of_node.abs(), (0, -values % block)).view(-1, block)
        bound += (padded.amax(dim=1) / 127 / 2).repeat_interleave(block)[:values]
    off = (flat.double() - exact_sum(world.size, 0, values)).abs()
    assert (off <= bound * (1 + 1e-4) + 1e-6).all()
    keepers = torch.stack(residuals(world, state)).ne(0).sum(dim=0)
    assert keepers.max() == len(collectives.group.members)


def test_a_node_sends_a_quarter_of_the_bytes(world: World, collectives: DirectCollectives) -> None:
    """Two nodes send each other 4 bytes a value in a hierarchical float32 all-reduce."""
    values = 100_003
    state = Int8().for_bucket([torch.Size((values,))], torch.float32, "cpu")
    sent = state.sum_(contribution(world.rank, 0, values), "test", collectives)
    everyones = gather_objects(world, sent)
    for ranks in collectives.group.members:
        assert 0.25 < sum(everyones[rank] for rank in ranks) / (4 * values) < 0.253


@pytest.mark.parametrize("place", [0, 9000, -1])
def test_a_bad_value_reaches_all_and_is_forgotten(world: World, collectives: DirectCollectives, place: int) -> None:
    values = count(SHAPES)
    state, untouched = (Int8().for_bucket(SHAPES, torch.float32, "cpu") for _ in range(2))
    for step in range(3):
        if step == 1:
            flat = contribution(world.rank, 99, values)
            if world.rank == world.size - 1:
                flat[place] = float("nan")
            state.sum_(flat, "bad", collectives)
            assert torch.isnan(flat).all()
        flat, wanted = contribution(world.rank, step, values), contribution(world.rank, step, values)
        state.sum_(flat, "test", collectives)
        untouched.sum_(wanted, "test", collectives)
        assert torch.equal(flat, wanted)


def test_tiny_buckets(world: World, collectives: DirectCollectives) -> None:
    """Fewer values than carriers: in the end all is sent."""
    for values in (0, 1, 2, 3):
        state = Int8(block_values=2).for_bucket([torch.Size((values,))], torch.float32, "cpu")
        received = torch.zeros(values, dtype=torch.float64)
        for step in range(4):
            flat = contribution(world.rank, 0, values) * (step == 0)
            state.sum_(flat, "test", collectives)
            received += flat.double()
        torch.testing.assert_close(received, exact_sum(world.size, 0, values), rtol=0, atol=1e-5)
