"""Horovod's engine against the naive reference: every operation, dtype and odd shape."""

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import Collectives, HorovodEngine, Naive, ReduceOp
from hvdkit.runtime import World

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WHOLE = [torch.int32, torch.int64]
SHAPES = [(), (0,), (0, 3), (1,), (2,), (7,), (3, 5), (1000,)]


def values(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers, exact in every dtype, that differ per rank."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) + 2 * world.rank) % 5) - 1).view(shape).to(dtype)


def reduced(engine: Collectives, tensor: torch.Tensor, op: ReduceOp, prescale: float = 1.0) -> torch.Tensor:
    result = engine.all_reduce_async_(tensor, f"test.{tensor.dtype}.{op}", op=op, prescale=prescale).wait()
    assert result.data_ptr() == tensor.data_ptr(), "not in place"
    return result


@pytest.mark.parametrize("op", ["sum", "average", "min", "max", "product"])
@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE])
def test_all_reduce(world: World, dtype: torch.dtype, op: ReduceOp) -> None:
    if op == "average" and dtype in WHOLE:
        pytest.skip("the mean of whole numbers is not one")
    for shape in SHAPES:
        got = reduced(HorovodEngine(world), values(world, shape, dtype), op)
        wanted = reduced(Naive(world), values(world, shape, dtype), op)
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        tolerance = torch.finfo(dtype).eps if dtype in FLOATS else 0
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
def test_prescale(world: World, dtype: torch.dtype) -> None:
    got = reduced(HorovodEngine(world), values(world, (9,), dtype), "sum", prescale=0.25)
    assert torch.equal(got, reduced(Naive(world), values(world, (9,), dtype), "sum", prescale=0.25))


def test_adasum_is_the_engines_own(world: World) -> None:
    with pytest.raises(ValueError, match="'adasum' is not one of"):
        Naive(world).all_reduce_async_(torch.ones(1), "adasum", op="adasum")


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, torch.uint8])
def test_all_gather(world: World, dtype: torch.dtype) -> None:
    """Ranks bring different numbers of rows, the first of them none."""
    for shape in [(world.rank,), (world.rank, 3), (2 * world.rank, 2, 2), (0, 4)]:
        mine = values(world, shape, dtype)
        assert torch.equal(HorovodEngine(world).all_gather(mine, "test"), Naive(world).all_gather(mine, "test"))


def test_not_contiguous(world: World) -> None:
    """Gathered as it is; reducing in place would need a copy, and says so on every rank."""
    table = values(world, (4, 6), torch.float32)
    for tensor in (table.t(), table[:, ::2], table[1:3, 1:]):
        gathered = HorovodEngine(world).all_gather(tensor, "test")
        assert torch.equal(gathered, Naive(world).all_gather(tensor, "test"))
        with pytest.raises(ValueError, match="contiguous"):
            HorovodEngine(world).all_reduce_async_(tensor, "test")


def test_several_under_way_and_in_any_order(world: World) -> None:
    engine = HorovodEngine(world)
    tensors = [values(world, (n,), torch.float64) for n in range(5)]
    turn = range(5) if world.rank % 2 else reversed(range(5))
    works = {n: engine.all_reduce_async_(tensors[n], f"test.{n}") for n in turn}
    for n in range(5):
        wanted = reduced(Naive(world), values(world, (n,), torch.float64), "sum")
        assert torch.equal(works[n].wait(), wanted)


def test_gather_objects(world: World) -> None:
    for item in ([world.rank] * world.rank, {"rank": world.rank, "text": "x" * 1000 * world.rank}, 0):
        assert HorovodEngine(world).gather_objects(item, "test") == Naive(world).gather_objects(item, "test")


def test_over_a_process_set(world: World) -> None:
    members = [0, world.size - 1] if world.size > 2 else [world.size - 1]
    chosen = hvd.add_process_set(members) if world.size > 1 else hvd.global_process_set
    if world.rank in members:
        engine = HorovodEngine(world, chosen)
        assert (engine.size, engine.index) == (len(members), members.index(world.rank))
        assert engine.all_gather(torch.tensor([world.rank]), "set").tolist() == members
        assert engine.gather_objects(world.rank, "set") == members
        work = engine.all_reduce_async_(torch.tensor([float(world.rank)]), "set")
        assert work.wait().item() == sum(members)
    hvd.barrier()
    assert world.size == 1 or hvd.remove_process_set(chosen)


def test_a_mismatch_is_an_error_on_all(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot disagree with itself")
    work = HorovodEngine(world).all_reduce_async_(torch.ones(2 + world.rank), "mismatch")
    with pytest.raises(hvd.HorovodInternalError, match="Mismatched"):
        work.wait()
    assert reduced(HorovodEngine(world), torch.ones(1), "sum").item() == world.size  # and the engine goes on
