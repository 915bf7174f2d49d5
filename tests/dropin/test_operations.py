"""Operations against closed forms, for every dtype, and against Horovod itself where Horovod can."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.runtime import World

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS]


def taken(operation: str) -> list[torch.dtype]:
    """The dtypes that Horovod's library has `operation` for, and bfloat16."""
    library = importlib.import_module("horovod.torch.mpi_lib_v2")
    kinds = {dtype: torch.empty(0, dtype=dtype).type().replace(".", "_") for dtype in DTYPES}
    known = [dtype for dtype, kind in kinds.items() if hasattr(library, f"horovod_torch_{operation}_async_{kind}")]
    assert torch.float32 in known and torch.bfloat16 not in known
    return [*known, torch.bfloat16]


def values(world: World, dtype: torch.dtype, rank: int | None = None, count: int = 5) -> torch.Tensor:
    """Small whole numbers that differ per rank."""
    rank = world.rank if rank is None else rank
    return (torch.arange(count) % 3 + rank).to(dtype)


def all_values(world: World, dtype: torch.dtype) -> list[torch.Tensor]:
    return [values(world, dtype, rank) for rank in range(world.size)]


@pytest.mark.parametrize("dtype", taken("allreduce"))
def test_sum_family(world: World, dtype: torch.dtype) -> None:
    wanted = torch.stack(all_values(world, torch.float64 if dtype.is_floating_point else torch.int64)).sum(0).to(dtype)
    calls: list[Callable[[torch.Tensor], Any]] = [
        lambda t: hvd.allreduce(t, op=hvd.Sum),
        lambda t: hvd.allreduce_(t, op=hvd.Sum),
        lambda t: hvd.synchronize(hvd.allreduce_async(t, op=hvd.Sum)),
        lambda t: hvd.synchronize(hvd.allreduce_async_(t, op=hvd.Sum)),
        lambda t: hvd.grouped_allreduce([t], op=hvd.Sum)[0],
        lambda t: hvd.grouped_allreduce_([t], op=hvd.Sum)[0],
        lambda t: hvd.synchronize(hvd.grouped_allreduce_async([t], op=hvd.Sum))[0],
        lambda t: hvd.synchronize(hvd.grouped_allreduce_async_([t], op=hvd.Sum))[0],
    ]
    for number, call in enumerate(calls):
        tensor = values(world, dtype)
        result = call(tensor)
        assert result.dtype == dtype and torch.equal(result, wanted), number
        in_place = number in (1, 3, 5, 7)
        assert torch.equal(tensor, wanted if in_place else values(world, dtype)), number
        assert (result.data_ptr() == tensor.data_ptr()) == in_place, number


@pytest.mark.parametrize("dtype", FLOATS)
def test_average_min_max_product_and_scales(world: World, dtype: torch.dtype) -> None:
    parts = torch.stack(all_values(world, torch.float64))
    tensor = values(world, dtype)
    torch.testing.assert_close(hvd.allreduce(tensor), parts.mean(0).to(dtype))
    assert torch.equal(hvd.allreduce(tensor, op=hvd.Min), parts.amin(0).to(dtype))
    assert torch.equal(hvd.allreduce(tensor, op=hvd.Max), parts.amax(0).to(dtype))
    assert torch.equal(hvd.allreduce(tensor, op=hvd.Product), parts.prod(0).to(dtype))
    scaled = hvd.allreduce(tensor, op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0)
    assert torch.equal(scaled, (parts.sum(0) * 2).to(dtype))


def test_bfloat16_sums_are_rounded_once(world: World) -> None:
    """256 + 1 is lost in bfloat16 at every step; in float32 it is not."""
    tensor = torch.tensor([256.0 if world.rank == 0 else 1.0], dtype=torch.bfloat16)
    exact = torch.tensor([256.0 + world.size - 1])
    assert torch.equal(hvd.allreduce(tensor, op=hvd.Sum), exact.to(torch.bfloat16))


def test_fp16_compression_leaves_bfloat16_its_range(world: World) -> None:
    """Horovod's sends it as float16, in which 1e20 is infinite."""
    half = hvd.Compression.fp16
    large = torch.full((world.size,), 1e20, dtype=torch.bfloat16)
    for result in (
        hvd.allreduce(large, compression=half),
        hvd.allreduce(large, None, "compressed", half),
        hvd.grouped_allreduce([large, torch.ones(1)], compression=half)[0],
    ):
        assert result.dtype == torch.bfloat16 and torch.equal(result, large)
    for scattered in (
        hvd.reducescatter(large, compression=half),
        hvd.grouped_reducescatter([large], compression=half)[0],
    ):
        assert scattered.dtype == torch.bfloat16 and torch.equal(scattered, large[:1])
    rounded = hvd.allreduce(torch.tensor([1 + 2.0**-12]), compression=half)
    assert rounded.dtype == torch.float32 and rounded.item() == 1


def test_a_bfloat16_handle_outlives_nothing(world: World) -> None:
    """As Horovod's: it is waited for once, then gives None; an error leaves nothing behind."""
    handle = hvd.allreduce_async(torch.ones(2, dtype=torch.bfloat16))
    assert hvd.synchronize(handle).dtype == torch.bfloat16
    assert hvd.synchronize(handle) is None
    if world.size > 1:
        handle = hvd.allreduce_async(torch.ones(2 + world.rank, dtype=torch.bfloat16), name="mismatch")
        with pytest.raises(hvd.HorovodInternalError, match="Mismatched"):
            hvd.synchronize(handle)
        assert hvd.synchronize(handle) is None
    assert hvd.synchronize(hvd.allreduce_async(torch.ones(1))).dtype == torch.float32


@pytest.mark.parametrize("dtype", taken("broadcast"))
def test_broadcast_family(world: World, dtype: torch.dtype) -> None:
    root = world.size - 1
    wanted = values(world, dtype, root)
    assert torch.equal(hvd.broadcast(values(world, dtype), root_rank=root), wanted)
    assert torch.equal(hvd.synchronize(hvd.broadcast_async(values(world, dtype), root_rank=root)), wanted)
    for call in (hvd.broadcast_, lambda t, root_rank: hvd.synchronize(hvd.broadcast_async_(t, root_rank))):
        tensor = values(world, dtype)
        assert call(tensor, root_rank=root) is tensor
        assert torch.equal(tensor, wanted)


@pytest.mark.parametrize("dtype", sorted({*taken("allgather")} & {*taken("alltoall")}, key=str))
def test_allgather_and_alltoall(world: World, dtype: torch.dtype) -> None:
    mine = values(world, dtype, count=world.rank + 1)
    wanted = torch.cat([values(world, dtype, rank, count=rank + 1) for rank in range(world.size)])
    for gathered in (
        hvd.allgather(mine),
        hvd.synchronize(hvd.allgather_async(mine)),
        hvd.grouped_allgather([mine])[0],
        hvd.synchronize(hvd.grouped_allgather_async([mine]))[0],
    ):
        assert gathered.dtype == dtype and torch.equal(gathered, wanted)
    rows = torch.full((world.size,), world.rank).to(dtype)
    assert torch.equal(hvd.alltoall(rows), torch.arange(world.size).to(dtype))
    out, splits = hvd.alltoall(rows, splits=torch.ones(world.size, dtype=torch.int32))
    assert torch.equal(out, torch.arange(world.size).to(dtype)) and splits.tolist() == [1] * world.size
    out, _ = hvd.synchronize(hvd.alltoall_async(rows))
    assert torch.equal(out, torch.arange(world.size).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_reducescatter_family(world: World, dtype: torch.dtype) -> None:
    rows = torch.stack([torch.full((world.size,), float(world.rank + 1 + i)) for i in range(world.size)]).to(dtype)
    total = sum(rank + 1 + world.rank for rank in range(world.size))
    wanted = torch.full((1, world.size), float(total)).to(dtype)
    for result in (
        hvd.reducescatter(rows, op=hvd.Sum),
        hvd.synchronize(hvd.reducescatter_async(rows, op=hvd.Sum)),
        hvd.grouped_reducescatter([rows], op=hvd.Sum)[0],
        hvd.synchronize(hvd.grouped_reducescatter_async([rows], op=hvd.Sum))[0],
    ):
        assert result.dtype == dtype and torch.equal(result, wanted)


def test_unnamed_operations_after_uneven_calls(world: World) -> None:
    """Horovod names them by the handle's number, and ranks that made fewer calls would wait for ever."""
    only = hvd.add_process_set([0]) if world.size > 1 else hvd.global_process_set
    for _ in range(3):
        if world.rank == 0:
            assert hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=only).item() == 1
            hvd.allreduce(torch.ones(1, dtype=torch.bfloat16), process_set=only)
        assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == world.size
        assert hvd.allgather(torch.ones(1)).numel() == world.size
        assert hvd.grouped_allreduce([torch.ones(1)] * 2, op=hvd.Sum)[1].item() == world.size
        assert hvd.broadcast_(torch.tensor(world.rank), 0).item() == 0
    hvd.barrier()
    assert world.size == 1 or hvd.remove_process_set(only)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sparse_allreduce(world: World, dtype: torch.dtype) -> None:
    mine = torch.sparse_coo_tensor(
        [[world.rank, 9]], torch.tensor([1.0, 2.0], dtype=dtype), (10,), check_invariants=True
    )
    result = hvd.sparse_allreduce_async(mine, name=f"sparse.{dtype}", op=hvd.Sum)()
    wanted = torch.zeros(10)
    wanted[: world.size] = 1
    wanted[9] += 2 * world.size
    assert result.dtype == dtype and torch.equal(result.to_dense().float(), wanted)


def test_errors_are_horovods(world: World) -> None:
    with pytest.raises(ValueError, match="Tensor is required to be contiguous"):
        hvd.allreduce_(torch.zeros(4, 4).t())
    with pytest.raises(ValueError, match="invalid params of type"):
        hvd.broadcast_parameters(iter([]), root_rank=0)


def test_uncommon_names_work(world: World) -> None:
    assert hvd.size() == world.size and hvd.rank() == world.rank
    assert hvd.local_size() == world.local_size and hvd.cross_size() == world.cross_size
    assert hvd.is_initialized() and (hvd.mpi_enabled() or hvd.gloo_enabled())
    hvd.barrier()
    handle = hvd.allreduce_async(torch.ones(1, dtype=torch.bfloat16))
    while not hvd.poll(handle):
        pass
    assert hvd.synchronize(handle).item() == 1
    assert hvd.allgather_object({"rank": world.rank}) == [{"rank": rank} for rank in range(world.size)]
    assert hvd.broadcast_object(world.rank, root_rank=world.size - 1) == world.size - 1
    assert hvd.join() in range(world.size)


def test_objects_of_several_types_without_a_name(world: World) -> None:
    """As a script hands over what only rank 0 has read; Horovod would wait for ever, by the name of the type."""
    mine = {"epoch": 3} if world.rank == 0 else None
    assert hvd.broadcast_object(mine) == {"epoch": 3}
    assert hvd.broadcast_object(mine, 0) == {"epoch": 3}
    assert hvd.allgather_object(mine) == [{"epoch": 3}] + [None] * (world.size - 1)
