"""The same gradients and weights as stock Horovod's own DistributedOptimizer, to rounding."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, batches, mine, mlp, square_loss


def train(model: nn.Module, optimizer: Any, world: World, passes: int) -> list[torch.Tensor]:
    """Three steps as a script for Horovod is written; returns the gradients of the last one."""
    dtype = next(model.parameters()).dtype
    rows = iter(batches(world, steps=3 * passes, dtype=dtype))
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(passes):
            square_loss(model, mine(world, next(rows))).backward()
        optimizer.synchronize()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        with optimizer.skip_synchronize():
            optimizer.step()
    return gradients


CASES: dict[str, dict[str, Any]] = {
    "average": {},
    "sum": {"op": "Sum"},
    "min": {"op": "Min"},
    "max": {"op": "Max"},
    "product": {"op": "Product"},
    "predivide": {"gradient_predivide_factor": 3.0},
    "fp16": {"compression": "fp16"},
    "fp16-predivide": {"compression": "fp16", "gradient_predivide_factor": 2.0},
    "groups": {"groups": 3},
    "group-lists": {"groups": "lists"},
    "passes": {"backward_passes_per_step": 3},
    "passes-sum-fp16-groups": {"backward_passes_per_step": 2, "op": "Sum", "compression": "fp16", "groups": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_dense_gradients(world: World, case: str) -> None:
    results = []
    horovod = importlib.import_module("horovod.torch")
    is_half = "compression" in CASES[case]
    for library in (hvd, horovod):
        model = mlp(torch.float32 if is_half else torch.float64)
        options = dict(CASES[case])
        if "op" in options:
            options["op"] = getattr(library, options["op"])
        if is_half:
            options["compression"] = library.Compression.fp16
        if options.get("groups") == "lists":
            options["groups"] = [[model[0].weight, model[4].bias], [model[2].weight]]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        optimizer = library.DistributedOptimizer(optimizer, model.named_parameters(), **options)
        passes = options.get("backward_passes_per_step", 1)
        results.append((model, train(model, optimizer, world, passes)))
    (model, gradients), (reference, wanted) = results
    tolerance = 4e-3 if is_half else 1e-12
    torch.testing.assert_close(gradients, wanted, rtol=tolerance, atol=tolerance)
    assert_same(model, reference, tolerance=tolerance)


def test_process_set(world: World) -> None:
    if world.size < 2:
        pytest.skip("needs 2 ranks to leave one out, or to have two in a set")
    horovod = importlib.import_module("horovod.torch")
    chosen = hvd.add_process_set([0, 2] if world.size > 2 else [1])
    results = []
    for library in (hvd, horovod):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        optimizer = library.DistributedOptimizer(optimizer, model.named_parameters(), process_set=chosen)
        results.append((model, train(model, optimizer, world, 1)))
    (model, gradients), (reference, wanted) = results
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)
    assert_same(model, reference, tolerance=1e-12)
    hvd.barrier()
    assert hvd.remove_process_set(chosen)


@pytest.mark.parametrize("as_dense", [True, False])
@pytest.mark.parametrize("op", ["Average", "Sum"])
def test_sparse_gradients(world: World, op: str, as_dense: bool) -> None:
    horovod = importlib.import_module("horovod.torch")
    results = []
    for library in (hvd, horovod):
        torch.manual_seed(0)
        table = nn.Embedding(9, 4, sparse=True).double()
        optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
        optimizer = library.DistributedOptimizer(
            optimizer, table.named_parameters(), op=getattr(library, op), sparse_as_dense=as_dense
        )
        for step in range(3):
            optimizer.zero_grad()
            table(torch.tensor([world.rank + step, 8, 8])).pow(2).sum().backward()
            optimizer.step()
        results.append(table)
    assert_same(*results, tolerance=1e-12)


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_adasum(world: World, compression: str) -> None:
    if world.size & (world.size - 1):
        pytest.skip("Adasum needs a power of 2 of ranks")
    if world.backend == "gloo":
        pytest.skip("Horovod's engine has no Adasum over Gloo")
    horovod = importlib.import_module("horovod.torch")
    results = []
    for library in (hvd, horovod):
        model = mlp(torch.float32)
        optimizer = library.DistributedOptimizer(
            torch.optim.Adam(model.parameters(), lr=0.01),
            model.named_parameters(),
            op=library.Adasum,
            compression=getattr(library.Compression, compression),
            backward_passes_per_step=2,
        )
        for first, second in zip(*[iter(batches(world, steps=6, dtype=torch.float32))] * 2, strict=True):
            optimizer.zero_grad()
            square_loss(model, mine(world, first)).backward()
            square_loss(model, mine(world, second)).backward()
            optimizer.step()
        results.append(model)
    assert_same(*results, tolerance=2e-3 if compression == "fp16" else 1e-5)


def test_parameters_without_gradient_differ_only_where_nobody_used_them(world: World) -> None:
    """Horovod makes zeros of them, which AdamW then decays; hvdkit leaves them alone, as one process does."""
    horovod = importlib.import_module("horovod.torch")
    used, unused = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.ones(3).double())
    twins = [nn.Parameter(p.detach().clone()) for p in (used, unused)]
    for library, (first, second) in ((hvd, (used, unused)), (horovod, twins)):
        names = [("used", first), ("unused", second)]
        optimizer = library.DistributedOptimizer(torch.optim.AdamW([first, second], lr=0.1, weight_decay=0.5), names)
        if world.rank == 0:
            (first * 3).sum().backward()
        optimizer.step()
    torch.testing.assert_close(used, twins[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(unused, torch.ones(3).double())


def test_stock_optimizer_and_hvdkits_in_one_process(world: World) -> None:
    """A script that is moved over bit by bit."""
    horovod = importlib.import_module("horovod.torch")
    model, reference = mlp(seed=1), mlp(seed=1)
    ours = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    theirs = horovod.DistributedOptimizer(torch.optim.SGD(reference.parameters(), lr=0.1))
    (batch,) = batches(world, steps=1)
    (square_loss(model, mine(world, batch)) + square_loss(reference, mine(world, batch))).backward()
    theirs.step()
    ours.step()
    assert_same(model, reference, tolerance=1e-12)
