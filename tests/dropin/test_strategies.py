"""`strategy=`: every operation by every algorithm gives what Horovod's engine gives, gradients too."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.errors import CollectiveMismatchError
from hvdkit.runtime import World, gather_objects
from tests.dropin.test_differentiable import level_handles
from tests.dropin.test_operations import DTYPES, taken
from tests.jobs import run_ranks, succeed

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EVERY_KIND = {"all_reduce": "allreduce", "all_gather": "allgather", "broadcast": "broadcast",
              "reduce_scatter": "reducescatter"}  # fmt: skip
OPS = ["Average", "Sum", "Min", "Max", "Product"]
KINDS = pytest.mark.parametrize("kind", EVERY_KIND)


def strategies(world: World, kind: str, *, own_only: bool = False) -> list[str]:
    """The valid ones, without the engine itself if `own_only`."""
    own = [] if why_no_direct(world) else direct_collectives(world).algorithms.names(kind)
    return [name for name in dict.fromkeys(["auto", "horovod", *own]) if not (own_only and name == "horovod")]


@pytest.fixture
def own(world: World) -> None:
    if why := why_no_direct(world):
        pytest.skip(why)


@pytest.fixture
def several(world: World, own: None) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot disagree with itself")


def values(world: World, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Small whole numbers that differ per rank: sums of them are exact in every dtype."""
    random = torch.Generator().manual_seed(seed * 100 + world.rank)
    return torch.randint(0, 4, shape, generator=random).to(dtype)


def shapes(kind: str) -> list[tuple[int, ...]]:
    common = [(0,), (1,), (7, 3), (2, 0), (3001,)]
    return common if kind in ("all_gather", "reduce_scatter") else [(), *common]


def assert_equal(got: Any, wanted: Any) -> None:
    """Equal but for the rounding of the last digit, which an average has and whole numbers do not."""
    if isinstance(wanted, list | tuple):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_equal(one, other)
        return
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-14}.get(got.dtype, 0)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=0)


def call(function: str, *args: Any, **kwargs: Any) -> Any:
    result = getattr(hvd, function)(*args, **kwargs)
    return hvd.synchronize(result) if "async" in function else result


def functions(name: str) -> list[str]:
    """All of the family `name`."""
    found = [
        n for n in hvd.__all__ if n.removeprefix("grouped_").rstrip("_").removesuffix("_async").rstrip("_") == name
    ]
    assert len(found) == {"allreduce": 8, "broadcast": 4}.get(name, 4)
    return found


def options(kind: str, op: str | None = None) -> dict[str, Any]:
    if kind == "broadcast":
        return {"root_rank": hvd.size() - 1}
    return {"op": getattr(hvd, op)} if op and kind != "all_gather" else {}


@KINDS
def test_every_function_equals_the_engines(world: World, kind: str) -> None:
    for function in functions(EVERY_KIND[kind]):
        grouped, in_place = function.startswith("grouped"), function.endswith("_")
        for strategy in strategies(world, kind):
            for dtype in (torch.float32, torch.int64, torch.bfloat16):
                mine = [values(world, shape, dtype, seed) for seed, shape in enumerate([(5, 3), (4,)])]
                theirs = [tensor.clone() for tensor in mine]
                before = [tensor.clone() for tensor in mine]
                given, theirs_given = (mine, theirs) if grouped else (mine[0], theirs[0])
                got = call(function, given, **options(kind), strategy=strategy)
                wanted = call(function, theirs_given, **options(kind))
                assert_equal(list(got) if grouped else got, list(wanted) if grouped else wanted)
                results = [*got] if grouped else [got]
                for tensor, result, old in zip(mine, results, before, strict=False):
                    assert (result is tensor) == in_place or strategy == "horovod"
                    assert in_place or torch.equal(tensor, old)


@KINDS
@pytest.mark.parametrize("op", OPS)
def test_every_operation_dtype_and_shape(world: World, kind: str, op: str) -> None:
    if op != "Average" and kind in ("all_gather", "broadcast"):
        pytest.skip("it has no operation")
    if op not in ("Average", "Sum") and kind == "reduce_scatter":
        pytest.skip("Horovod's has no such operation")
    for dtype in DTYPES if kind in ("all_gather", "broadcast") else [d for d in DTYPES if d != torch.bool]:
        for shape in shapes(kind):
            mine = values(world, shape, dtype)
            wanted = by_the_engine(world, kind, op, mine)
            for strategy in strategies(world, kind, own_only=True):
                if not why_no_direct(world) or (mine.numel() and dtype in taken(EVERY_KIND[kind])):
                    got = getattr(hvd, EVERY_KIND[kind])(mine, **options(kind, op), strategy=strategy)
                    assert_equal(got, wanted)


def by_the_engine(world: World, kind: str, op: str, mine: torch.Tensor) -> torch.Tensor:
    """What the engine gives, by way of int32 for dtypes that it does not reduce; of nothing it makes nothing."""
    if mine.numel():
        sent = mine if mine.dtype in taken(EVERY_KIND[kind]) else mine.int()
        result: torch.Tensor = getattr(hvd, EVERY_KIND[kind])(sent.clone(), **options(kind, op))
        return result.to(mine.dtype)
    if kind in ("all_reduce", "broadcast"):
        return mine.clone()
    rows = len(mine) * world.size if kind == "all_gather" else len(mine) // world.size
    rows += kind == "reduce_scatter" and world.rank < len(mine) % world.size
    return mine.new_empty((rows, *mine.shape[1:]))


def test_rows_that_differ(world: World) -> None:
    mine = values(world, (3 * world.rank, 2), torch.float32)
    wanted = hvd.allgather(mine)
    for strategy in strategies(world, "all_gather"):
        assert torch.equal(hvd.allgather(mine, strategy=strategy), wanted)


def test_into_memory_that_is_there(world: World) -> None:
    for mine in (values(world, (3 * world.rank + 1, 2), torch.float32), values(world, (4,), torch.int64)):
        wanted = hvd.allgather(mine)
        for strategy in [None, *strategies(world, "all_gather")]:
            out = torch.full_like(wanted, -1)
            assert hvd.allgather(mine, strategy=strategy, out=out) is out
            assert torch.equal(out, wanted)


def test_memory_that_does_not_fit(world: World) -> None:
    mine = torch.ones(2, 3, requires_grad=True)
    rows = 2 * world.size
    for strategy in strategies(world, "all_gather"):
        for out, said in [
            (torch.zeros(rows + 1, 3), "out="),
            (torch.zeros(rows, 3, dtype=torch.float64), "out="),
            (torch.zeros(rows, 3), "holds no gradients"),
        ]:
            with pytest.raises(ValueError, match=said):
                hvd.allgather(mine if "gradients" in said else mine.detach(), strategy=strategy, out=out)
    for strategy in strategies(world, "all_gather", own_only=True):
        with pytest.raises(ValueError, match="contiguous"):
            hvd.allgather(mine.detach(), strategy=strategy, out=torch.zeros(3, rows).t())


@pytest.mark.usefixtures("several")
def test_one_rank_whose_memory_does_not_fit(world: World) -> None:
    out = torch.zeros(2 * world.size + (world.rank == 1), 3)
    for strategy in strategies(world, "all_gather", own_only=True):
        with pytest.raises(ValueError, match=f"bring {2 * world.size} rows in all, and rank 1 gives an out= of"):
            hvd.allgather(torch.ones(2, 3), strategy=strategy, out=out)


@KINDS
def test_what_is_not_contiguous(world: World, kind: str) -> None:
    name = EVERY_KIND[kind]
    for strategy in [name for name in strategies(world, kind) if name != "horovod"]:
        mine = values(world, (6, 5), torch.float32).t()
        wanted = call(name, mine.contiguous(), **options(kind))
        assert_equal(call(name, mine, **options(kind), strategy=strategy), wanted)
        if kind in ("all_reduce", "broadcast"):
            for function in (f"{name}_", f"{name}_async_"):
                target = values(world, (6, 5), torch.float32).t()
                assert call(function, target, **options(kind), strategy=strategy) is target
                assert_equal(target, wanted)


@pytest.mark.usefixtures("own")
def test_complex_values_are_moved(world: World) -> None:
    mine = torch.complex(values(world, (4,), torch.float32), values(world, (4,), torch.float32, 1)).conj()
    parts = gather_objects(world, mine.resolve_conj())
    for strategy in strategies(world, "all_gather", own_only=True):
        assert torch.equal(hvd.allgather(mine, strategy=strategy), torch.cat(parts))
    for strategy in strategies(world, "broadcast", own_only=True):
        assert torch.equal(hvd.broadcast(mine, 0, strategy=strategy), parts[0])


@pytest.mark.parametrize("function", ["allreduce", "allreduce_", "reducescatter"])
@pytest.mark.parametrize("op", ["Sum", "Average"])
def test_factors(world: World, function: str, op: str) -> None:
    kind = "reduce_scatter" if function == "reducescatter" else "all_reduce"
    factors = {"op": getattr(hvd, op), "prescale_factor": 0.5, "postscale_factor": -3.0}
    for dtype in [torch.bfloat16, torch.float32, torch.float64]:
        mine = values(world, (6, 2), dtype)
        wanted = getattr(hvd, function)(mine.clone(), **factors)
        for strategy in strategies(world, kind):
            assert_equal(getattr(hvd, function)(mine.clone(), **factors, strategy=strategy), wanted)
    mine = values(world, (6, 2), torch.int32) * 2
    factors = {"op": getattr(hvd, op), "prescale_factor": 0.5, "postscale_factor": float(world.size)}
    wanted = getattr(hvd, function)(mine.clone(), **factors)
    for strategy in strategies(world, kind):
        assert_equal(getattr(hvd, function)(mine.clone(), **factors, strategy=strategy), wanted)


@pytest.mark.filterwarnings("ignore:Parameter `average` has been replaced")
@pytest.mark.parametrize("compression", ["fp16", "bf16"])
def test_average_and_compression(world: World, compression: str) -> None:
    compressor = getattr(hvd.Compression, compression)
    mine = values(world, (9,), torch.float32)
    for strategy in strategies(world, "all_reduce"):
        assert_equal(hvd.allreduce(mine, average=False, strategy=strategy), hvd.allreduce(mine, op=hvd.Sum))
        got = hvd.allreduce(mine, op=hvd.Sum, compression=compressor, strategy=strategy)
        assert_equal(got, hvd.allreduce(mine, op=hvd.Sum, compression=compressor))
        (got,) = hvd.grouped_allreduce([mine], op=hvd.Sum, compression=compressor, strategy=strategy)
        assert_equal(got, hvd.allreduce(mine, op=hvd.Sum))


def test_weighted_average_and_sum(world: World) -> None:
    weight = world.rank + 0.5
    weights = torch.tensor([rank + 0.5 for rank in range(world.size)], dtype=torch.float64)
    for dtype in FLOATS:
        mine = values(world, (2, 3), dtype)
        parts = torch.stack(gather_objects(world, mine.double()))
        summed = torch.einsum("p,pij->ij", weights, parts)
        for strategy in [None, *strategies(world, "all_reduce")]:
            for op, wanted in ((hvd.Sum, summed), (None, summed / weights.sum())):
                assert_equal(hvd.allreduce(mine, op=op, weight=weight, strategy=strategy), wanted.to(dtype))
                target = mine.clone()
                assert hvd.allreduce_(target, op=op, weight=weight, strategy=strategy) is target
                assert_equal(target, wanted.to(dtype))
    for strategy in [None, *strategies(world, "all_reduce")]:
        mine = values(world, (3,), torch.float64).requires_grad_()
        (hvd.allreduce(mine, weight=weight, strategy=strategy) * (world.rank + 1)).sum().backward()
        assert mine.grad is not None
        size = world.size
        assert_equal(mine.grad, (weight / weights.sum() * size * (size + 1) / 2).expand(3))


def test_weights_that_are_none(world: World) -> None:
    for wrong in (-1.0, float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match="weights"):
            hvd.allreduce(torch.ones(2), weight=wrong)
    for wrong in (-1.0, float("nan")):  # of one rank
        with pytest.raises(ValueError, match="weights"):
            hvd.allreduce(torch.ones(2), weight=wrong if world.rank == 0 else 1.0)
    with pytest.raises(ValueError, match="floating-point"):
        hvd.allreduce(torch.ones(2, dtype=torch.int32), weight=1.0)
    with pytest.raises(ValueError, match="weights go with"):
        hvd.allreduce(torch.ones(2), weight=1.0, op=hvd.Max)


GRADIENTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "allreduce sum": ("all_reduce", lambda t, **kw: hvd.allreduce(t, op=hvd.Sum, **kw)),
    "allreduce average, factors": (
        "all_reduce",
        lambda t, **kw: hvd.allreduce(t, prescale_factor=2.0, postscale_factor=3.0, **kw),
    ),
    "allreduce fp16": ("all_reduce", lambda t, **kw: hvd.allreduce(t, compression=hvd.Compression.fp16, **kw)),
    "grouped_allreduce": ("all_reduce", lambda t, **kw: torch.cat([*hvd.grouped_allreduce([t, t * 2], **kw)])),
    "allgather": ("all_gather", lambda t, **kw: hvd.allgather(t[: 2 + hvd.rank()], **kw)),
    "grouped_allgather": ("all_gather", lambda t, **kw: torch.cat([*hvd.grouped_allgather([t, t * t], **kw)])),
    "broadcast": ("broadcast", lambda t, **kw: hvd.broadcast(t, hvd.size() - 1, **kw)),
    "reducescatter": ("reduce_scatter", lambda t, **kw: hvd.reducescatter(t, **kw)),
    "reducescatter sum, factors": (
        "reduce_scatter",
        lambda t, **kw: hvd.reducescatter(t, op=hvd.Sum, prescale_factor=2.0, postscale_factor=3.0, **kw),
    ),
    "grouped_reducescatter": ("reduce_scatter", lambda t, **kw: torch.cat([*hvd.grouped_reducescatter([t, t], **kw)])),
}


@pytest.mark.filterwarnings("ignore:Parameter `average` has been replaced")
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_equal_the_engines(world: World, case: str) -> None:
    kind, function = GRADIENTS[case]

    def gradient(**kwargs: Any) -> torch.Tensor:
        tensor = (values(world, (5, 2), torch.float32) + 1).requires_grad_()
        result = function(tensor, **kwargs)
        (result * torch.arange(result.numel()).view(result.shape) * (world.rank + 1)).sum().backward()
        assert tensor.grad is not None
        return tensor.grad

    level_handles(world)
    wanted = gradient()
    assert wanted.abs().sum() or kind == "broadcast"
    for strategy in strategies(world, kind):
        level_handles(world)
        assert_equal(gradient(strategy=strategy), wanted)


def test_handles(world: World) -> None:
    for strategy in [None, *strategies(world, "all_reduce")]:
        mine = torch.ones(3, requires_grad=True)
        handle = hvd.allreduce_async(mine, op=hvd.Sum, name="handles", strategy=strategy)
        while not hvd.poll(handle):
            pass
        result = hvd.synchronize(handle)
        assert result.tolist() == [world.size] * 3 and not result.requires_grad
        assert hvd.synchronize(handle) is None


# -- what cannot be done


@KINDS
def test_names_of_strategies(world: World, kind: str) -> None:
    for wrong in ("rnig", "Horovod", ""):
        with pytest.raises(ValueError, match=r"no such algorithm.*auto, horovod"):
            call(EVERY_KIND[kind], torch.ones(2), **options(kind), strategy=wrong)
    known = {"mpi", "ring", "tree", "shared_memory", "hierarchical"}
    for name in sorted(known - {*strategies(world, kind)}):
        with pytest.raises(ValueError, match=f"strategy='{name}'.*use one of auto, horovod") as error:
            call(EVERY_KIND[kind], torch.ones(2), **options(kind), strategy=name)
        assert all(valid in str(error.value) for valid in strategies(world, kind))


@pytest.mark.usefixtures("own")
def test_refusals(world: World) -> None:
    meta = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match=r"on the CPU, not .* on meta; use one of auto, horovod"):
        hvd.allreduce(meta, strategy="ring")
    with pytest.raises(ValueError, match="Adasum needs Horovod's engine"):
        hvd.allreduce(torch.ones(2), op=hvd.Adasum, strategy="ring")
    with pytest.raises(ValueError, match="supersedes"):
        hvd.allreduce(torch.ones(2), op=hvd.Sum, average=True, strategy="ring")
    with pytest.raises(ValueError, match=r"compression=.* is for DistributedOptimizer"):
        hvd.allreduce(torch.ones(2), compression=object(), strategy="ring")
    with pytest.raises(ValueError, match=f"root_rank={world.size} is not one of the ranks"):
        hvd.broadcast(torch.ones(2), world.size, strategy="tree")
    with pytest.raises(ValueError, match="no tensors"):
        hvd.grouped_allreduce([], strategy="ring")
    with pytest.raises(TypeError, match=r"bool cannot be reduced"):
        hvd.allreduce(torch.ones(2).bool(), strategy="ring")
    with pytest.raises(TypeError, match="unexpected keyword"):
        hvd.allgather(torch.ones(2), weight=2.0)


MISMATCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any], str, str]] = {
    "shape": (
        lambda: hvd.allreduce(torch.ones(3), strategy="ring"),
        lambda: hvd.allreduce(torch.ones(2), strategy="ring"),
        r"\(3,\)",
        r"\(2,\)",
    ),
    "same count": (
        lambda: hvd.allreduce(torch.ones(3, 2), strategy="mpi"),
        lambda: hvd.allreduce(torch.ones(2, 3), strategy="mpi"),
        r"\(3, 2\)",
        r"\(2, 3\)",
    ),
    "dtype": (
        lambda: hvd.broadcast(torch.ones(2), 0, strategy="tree"),
        lambda: hvd.broadcast(torch.ones(2).double(), 0, strategy="tree"),
        "float32",
        "float64",
    ),
    "op": (
        lambda: hvd.reducescatter(torch.ones(2), op=hvd.Sum, strategy="auto"),
        lambda: hvd.reducescatter(torch.ones(2), op=hvd.Average, strategy="auto"),
        "sum",
        "average",
    ),
    "root": (
        lambda: hvd.broadcast_(torch.ones(2), 0, strategy="auto"),
        lambda: hvd.broadcast_(torch.ones(2), 1, strategy="auto"),
        "root 0",
        "root 1",
    ),
    "order": (
        lambda: hvd.allreduce(torch.ones(2), name="first", strategy="auto"),
        lambda: hvd.allreduce(torch.ones(2), name="second", strategy="auto"),
        "'first'",
        "'second'",
    ),
    "kind": (
        lambda: hvd.allgather(torch.ones(2), strategy="auto"),
        lambda: hvd.allreduce_async(torch.ones(2), strategy="auto"),
        "all_gather",
        "all_reduce",
    ),
    "rows": (
        lambda: hvd.allgather(torch.ones(2, 2), strategy="ring"),
        lambda: hvd.allgather(torch.ones(2, 3), strategy="ring"),
        r"\(2, 2\)",
        r"\(2, 3\)",
    ),
    "strategy": (
        lambda: hvd.allreduce(torch.ones(2), strategy="ring"),
        lambda: hvd.allreduce(torch.ones(2), strategy="tree"),
        "ring",
        "tree",
    ),
    "factor": (
        lambda: hvd.allreduce(torch.ones(2), prescale_factor=2.0, strategy="ring"),
        lambda: hvd.allreduce(torch.ones(2), prescale_factor=3.0, strategy="ring"),
        "2.0",
        "3.0",
    ),
    "how many": (
        lambda: hvd.grouped_allreduce([torch.ones(2)] * 2, strategy="ring"),
        lambda: hvd.grouped_allreduce([torch.ones(2)] * 3, strategy="ring"),
        "of 2",
        "of 3",
    ),
    "weighted": (
        lambda: hvd.allreduce(torch.ones(2), weight=2.0),
        lambda: hvd.allreduce(torch.ones(2), strategy="auto"),
        "weighted average",
        "float32",
    ),
}


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("case", MISMATCHES)
def test_ranks_that_disagree(world: World, case: str) -> None:
    first, others, asked, asked_by_others = MISMATCHES[case]
    with pytest.raises(CollectiveMismatchError, match="different collectives") as error:
        (first if world.rank == 0 else others)()
    lines = str(error.value).splitlines()
    by_ranks = {line.split(":")[0].strip(): line for line in lines if line.startswith("  rank ")}
    everyone = ", ".join(map(str, range(1, world.size)))
    assert by_ranks.keys() == {"rank 0", f"rank {everyone}"}
    for line, pattern in ((by_ranks["rank 0"], asked), (by_ranks[f"rank {everyone}"], asked_by_others)):
        assert re.search(pattern, line), line
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum, strategy="auto").item() == world.size  # still in step


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    ("kwargs", "mistake"),
    [
        ({"strategy": "rnig"}, "no such algorithm"),
        ({"strategy": "ring", "op": 12345}, "12345"),
        ({"strategy": "ring", "compression": object()}, "DistributedOptimizer"),
    ],
)
def test_a_mistake_of_one_rank_reaches_all(world: World, kwargs: dict[str, Any], mistake: str) -> None:
    with pytest.raises(CollectiveMismatchError, match=mistake):
        hvd.allreduce(torch.ones(2), **(kwargs if world.rank == 0 else {"strategy": "ring"}))


# -- process sets


@pytest.fixture
def part(world: World) -> Iterator[Any]:
    """All ranks but the second."""
    if world.size == 1:
        pytest.skip("one rank has no subset")
    process_set = hvd.add_process_set([rank for rank in range(world.size) if rank != 1])
    yield process_set
    hvd.remove_process_set(process_set)


@KINDS
def test_process_sets(world: World, part: Any, kind: str) -> None:
    name = EVERY_KIND[kind]
    how = {"root_rank": part.ranks[-1]} if kind == "broadcast" else {}
    mine = values(world, (5, 2), torch.float32)
    if part.included():
        wanted = call(name, mine, **how, process_set=part)
        own = [] if why_no_direct(world) else direct_collectives(world, part).algorithms.names(kind)
        for strategy in ["auto", *own]:
            assert_equal(call(name, mine, **how, process_set=part, strategy=strategy), wanted)
            assert_equal(call(f"{name}_async", mine, **how, process_set=part, strategy=strategy), wanted)
        if kind == "all_reduce":
            assert_equal(call(name, mine, process_set=part, weight=2.0), wanted)
    elif not why_no_direct(world):
        with pytest.raises(ValueError, match="not one of the ranks of"):
            call(name, mine, **how, process_set=part, strategy="auto")


def test_a_process_set_that_does_not_exist(world: World) -> None:
    if not why_no_direct(world):
        with pytest.raises(ValueError, match="does not exist"):
            hvd.allreduce(torch.ones(1), process_set=hvd.ProcessSet([0]), strategy="auto")


# -- join


@pytest.mark.usefixtures("own")
def test_others_go_on_when_a_rank_has_joined(world: World) -> None:
    """The last rank has joined: it brings zeros to reductions and no rows to gathers, of gradients too."""
    if world.rank < world.size - 1 or world.size == 1:
        others = max(1, world.size - 1)
        mine = torch.full((2,), 3.0, requires_grad=True)
        assert hvd.allreduce(mine, op=hvd.Sum, strategy="auto").tolist() == [3.0 * others] * 2
        hvd.allgather(mine, strategy="auto").sum().backward()
        assert mine.grad is not None and mine.grad.tolist() == pytest.approx([others / world.size] * 2)
        mine.grad = None
        (hvd.allreduce(mine, weight=2.0) * 5).sum().backward()
        assert mine.grad.tolist() == pytest.approx([5.0] * 2)
        with pytest.raises(ValueError, match="no such algorithm"):
            hvd.allreduce(mine, strategy="rnig")
    assert 0 <= hvd.join() < world.size


# -- the interface


def test_signatures_show_it(world: World) -> None:
    for name in EVERY_KIND.values():
        for function in functions(name):
            parameter = inspect.signature(getattr(hvd, function)).parameters["strategy"]
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is None
            assert "strategy: hvdkit's" in getattr(hvd, function).__doc__
    mpi_ops = hvd.mpi_ops
    assert mpi_ops.allreduce is hvd.allreduce and mpi_ops.synchronize is hvd.synchronize and mpi_ops.poll is hvd.poll


@pytest.mark.launch
@pytest.mark.parametrize(("launcher", "ranks"), [("mpirun", 2), ("mpirun", 3), ("horovodrun-gloo", 2)])
def test_on_several_ranks(launcher: str, ranks: int) -> None:
    words = ["-m", "pytest", "-x", "--color=no", "-p", "no:cacheprovider", __file__]
    succeed(run_ranks(ranks, *words, launcher=launcher, timeout_s=250))
