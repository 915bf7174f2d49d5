"""Every algorithm against the naive one: all dtypes, operations and lengths, on one node and on nodes made up."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.hierarchical import OUTER, Hierarchical
from hvdkit.collectives.mpi_library import MpiLibrary
from hvdkit.collectives.naive import NaiveAlgorithm, reduce_in_order
from hvdkit.collectives.reduction import REDUCIBLE, Reduction, reduction_for, starts_of
from hvdkit.collectives.ring import Ring
from hvdkit.collectives.shared_memory import SharedMemory
from hvdkit.collectives.tree import Tree
from hvdkit.runtime import World

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mpi": (MpiLibrary, {}),
    "ring": (Ring, {}),
    "tree": (Tree, {}),
    "shared_memory": (SharedMemory, {"slot_bytes": 64 * 6 * 8}),
    **{f"hierarchical over {outer}": (Hierarchical, {"outer": outer}) for outer in OUTER},
}
LENGTHS = (0, 1, 5, 3001)


def offering(collective: str) -> list[str]:
    """The algorithms that offer `collective`."""
    return [name for name, (kind, _) in ALGORITHMS.items() if hasattr(kind, collective)]


@pytest.fixture(scope="module", params=["one node", "two nodes"])
def group(world: World, request: pytest.FixtureRequest) -> Iterator[Group]:
    """All ranks: on the node they are on, and as if the last one were on another."""
    nodes = None if request.param == "one node" else [int(rank == world.size - 1) for rank in range(world.size)]
    if world.comm is None:
        pytest.skip("hvdkit's own algorithms need MPI")
    made = Group(world.comm, nodes)
    yield made
    made.close()


@pytest.fixture(scope="module", params=list(ALGORITHMS))
def algorithm(group: Group, request: pytest.FixtureRequest) -> Iterator[Any]:
    kind, options = ALGORITHMS[request.param]
    if kind is SharedMemory and not group.is_one_node:
        pytest.skip("shared memory is for one node")
    made = kind(group, **options)
    yield made
    if hasattr(made, "close"):
        made.close()


def everyones(world: World, count: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """What each rank brings: (count,) each, known to all without communication."""
    random = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return [torch.randn(count, generator=random, dtype=torch.float64).to(dtype) for _ in range(world.size)]
    low = 0 if dtype == torch.uint8 else -3
    return [torch.randint(low, 4, (count,), generator=random).to(dtype) for _ in range(world.size)]


def assert_reduced(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """To the rounding of one result: 16-bit values are summed in float32, and rounded once."""
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-14}.get(got.dtype, 0)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=3 * tolerance)


def reductions(world: World, dtype: torch.dtype) -> list[Reduction]:
    made = [reduction_for(op, world.size, dtype) for op in ("sum", "average", "min", "max", "product")]
    if dtype.is_floating_point:
        weights = [float(rank) + 0.5 for rank in range(world.size)]
        made += [reduction_for("average", world.size, dtype, weights), reduction_for("sum", world.size, dtype, weights)]
    return made


def test_many_tensors_in_one_pipeline(world: World, group: Group, algorithm: Any) -> None:
    """More blocks than lanes, and tensors shorter than a block between longer ones."""
    if not hasattr(algorithm, "all_reduce_many"):
        pytest.skip("it has none")
    brought = [everyones(world, count, torch.float64, seed=count) for count in (700_003, 1, 0, 400_000, 17)]
    tensors = [everyone[world.rank].clone() for everyone in brought]
    algorithm.all_reduce_many(tensors, Reduction("sum"))
    for tensor, everyone in zip(tensors, brought, strict=True):
        assert_reduced(tensor, reduce_in_order(everyone, Reduction("sum")))


@pytest.mark.parametrize("dtype", REDUCIBLE, ids=str)
def test_all_reduce(world: World, algorithm: Any, dtype: torch.dtype) -> None:
    for reduction in reductions(world, dtype):
        for count in LENGTHS:
            parts = everyones(world, count, dtype)
            got = parts[world.rank].clone()
            algorithm.all_reduce(got, reduction)
            assert_reduced(got, reduce_in_order(parts, reduction))


@pytest.mark.parametrize("algorithm", offering("reduce"), indirect=True)
@pytest.mark.parametrize("dtype", REDUCIBLE, ids=str)
def test_reduce(world: World, algorithm: Any, dtype: torch.dtype) -> None:
    for reduction in reductions(world, dtype):
        for count, root in itertools.product(LENGTHS, {0, world.size - 1}):
            parts = everyones(world, count, dtype)
            got = parts[world.rank].clone()
            algorithm.reduce(got, root, reduction)
            if world.rank == root:
                assert_reduced(got, reduce_in_order(parts, reduction))
            else:
                assert torch.equal(got, parts[world.rank])


@pytest.mark.parametrize("algorithm", offering("reduce_scatter"), indirect=True)
@pytest.mark.parametrize("dtype", REDUCIBLE, ids=str)
def test_reduce_scatter(world: World, algorithm: Any, dtype: torch.dtype) -> None:
    for reduction in reductions(world, dtype):
        for longest in LENGTHS:
            counts = [max(0, longest - 7 * rank) for rank in range(world.size)]
            parts = everyones(world, sum(counts), dtype)
            mine, got = parts[world.rank].clone(), torch.zeros(counts[world.rank], dtype=dtype)
            algorithm.reduce_scatter(mine, got, counts, reduction)
            start = starts_of(counts)[world.rank]
            assert_reduced(got, reduce_in_order(parts, reduction)[start : start + counts[world.rank]])
            assert torch.equal(mine, parts[world.rank])


@pytest.mark.parametrize("algorithm", offering("all_gather"), indirect=True)
@pytest.mark.parametrize("dtype", REDUCIBLE, ids=str)
def test_all_gather(world: World, algorithm: Any, dtype: torch.dtype) -> None:
    for longest in LENGTHS:
        for counts in ([longest] * world.size, [max(0, longest - 7 * rank) for rank in range(world.size)]):
            parts = [part[:count] for part, count in zip(everyones(world, longest, dtype), counts, strict=True)]
            out = torch.zeros(sum(counts), dtype=dtype)
            algorithm.all_gather(parts[world.rank].clone(), out, counts)
            assert torch.equal(out, torch.cat(parts))


@pytest.mark.parametrize("algorithm", offering("broadcast"), indirect=True)
@pytest.mark.parametrize("dtype", REDUCIBLE, ids=str)
def test_broadcast(world: World, algorithm: Any, dtype: torch.dtype) -> None:
    for count, root in itertools.product(LENGTHS, range(world.size)):
        parts = everyones(world, count, dtype, seed=root)
        got = parts[world.rank].clone()
        algorithm.broadcast(got, root)
        assert torch.equal(got, parts[root])


def test_long_messages_pass_through_several_blocks(world: World, algorithm: Any) -> None:
    """More blocks than lanes or slots, and the last one not full."""
    reduction = reduction_for("average", world.size, torch.float32)
    count = 2_500_001 if isinstance(algorithm, Hierarchical) else 50_001
    parts = everyones(world, count, torch.float32)
    got = parts[world.rank].clone()
    algorithm.all_reduce(got, reduction)
    wanted = reduce_in_order(parts, reduction)
    assert_reduced(got, wanted)
    if hasattr(algorithm, "broadcast"):
        algorithm.broadcast(got.add_(world.rank), world.size - 1)
        assert_reduced(got, wanted + world.size - 1)


@pytest.fixture(scope="module", params=["in turns", "last on its own"])
def hierarchical(world: World, request: pytest.FixtureRequest) -> Iterator[Hierarchical]:
    """On two nodes, whose ranks are not numbered one after another, or of which one has fewer carriers than ranks."""
    if world.comm is None:
        pytest.skip("hvdkit's own algorithms need MPI")
    in_turns = request.param == "in turns"
    group = Group(world.comm, [rank % 2 if in_turns else int(rank == world.size - 1) for rank in range(world.size)])
    made = Hierarchical(group)
    yield made
    made.close()
    group.close()


def test_parts_of_several_blocks_on_nodes_in_any_order(world: World, hierarchical: Hierarchical) -> None:
    """Parts of very different lengths, more blocks than lanes."""
    counts = [(700_001, 0, 3, 1_000_000)[rank % 4] for rank in range(world.size)]
    mine = slice(start := starts_of(counts)[world.rank], start + counts[world.rank])
    brought = everyones(world, sum(counts), torch.float32)
    got, reduction = torch.zeros(counts[world.rank]), reduction_for("average", world.size, torch.float32)
    hierarchical.reduce_scatter(brought[world.rank], got, counts, reduction)
    assert_reduced(got, reduce_in_order(brought, reduction)[mine])
    gathered = torch.zeros(sum(counts))
    hierarchical.all_gather(brought[0][mine].clone(), gathered, counts)
    assert torch.equal(gathered, brought[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_all_ranks_and_in_every_repetition(world: World, algorithm: Any, dtype: torch.dtype) -> None:
    results = []
    for _ in range(4):
        data = everyones(world, 10_007, dtype)[world.rank]
        algorithm.all_reduce(data, reduction_for("average", world.size, dtype))
        results.append(data)
    everyone = torch.cat([data.view(torch.uint8) for data in results])
    assert world.comm is not None
    assert len(set(world.comm.allgather(everyone.numpy().tobytes()))) == 1
    assert all(torch.equal(results[0], data) for data in results)


def test_sixteen_bit_values_are_added_in_float32(world: World, algorithm: Any) -> None:
    """256 + 1 is 256 in bfloat16; summed wide and rounded once, small terms count."""
    data = torch.full((1000,), 256.0 if world.rank == 0 else 1.0, dtype=torch.bfloat16)
    algorithm.all_reduce(data, Reduction("sum"))
    wanted = torch.tensor(256.0 + (world.size - 1)).to(torch.bfloat16)
    assert (data == wanted).all()


def test_the_naive_one_is_what_the_others_are_compared_with(world: World) -> None:
    for reduction in reductions(world, torch.float32):
        parts = everyones(world, 10, torch.float32)
        got = parts[world.rank].clone()
        NaiveAlgorithm(world).all_reduce(got, reduction)
        assert torch.equal(got, reduce_in_order(parts, reduction))
