"""`step(closure)`: averaged gradients, and an averaged loss, so that line searches go the same way on every rank."""

from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, batches, mine, mlp, square_loss, twin


@pytest.mark.parametrize("returns", ["tensor", "float", "nothing"])
def test_closures(world: World, returns: str) -> None:
    """`step(closure)` steps on averaged gradients and returns the averaged loss, whatever kind of loss it is."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(world, steps=3):

        def closure(rows: torch.Tensor = batch) -> Any:
            optimizer.zero_grad()
            loss = square_loss(model, mine(world, rows))
            loss.backward()
            return {"tensor": loss, "float": loss.item(), "nothing": None}[returns]

        got = optimizer.step(closure)
        plain.zero_grad()
        wanted = square_loss(reference, batch)
        wanted.backward()
        plain.step()
        if returns == "nothing":
            assert got is None
        else:
            assert isinstance(got, torch.Tensor if returns == "tensor" else float)
            torch.testing.assert_close(float(got), wanted.item(), rtol=1e-12, atol=0)
    assert_same(model, reference)


def test_lbfgs_line_search_takes_the_same_path_everywhere(world: World) -> None:
    model = mlp()
    reference = twin(model)
    options = {"lr": 1.0, "max_iter": 6, "line_search_fn": "strong_wolfe"}
    optimizer = hvd.DistributedOptimizer(torch.optim.LBFGS(model.parameters(), **options))
    plain = torch.optim.LBFGS(reference.parameters(), **options)
    # Very different scales per rank: local losses would make ranks search differently and deadlock.
    scales = torch.tensor([10.0**rank for rank in range(world.size)], dtype=torch.float64)
    for batch in batches(world, steps=2):
        rows = batch.chunk(world.size)

        def closure(rows: Any = rows) -> torch.Tensor:
            optimizer.zero_grad()
            loss = square_loss(model, rows[world.rank]) * scales[world.rank]
            loss.backward()
            return loss

        def plain_closure(rows: Any = rows) -> torch.Tensor:
            plain.zero_grad()
            parts = [square_loss(reference, part) * scale for part, scale in zip(rows, scales, strict=True)]
            loss = torch.stack(parts).mean()
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        torch.testing.assert_close(loss, plain.step(plain_closure), rtol=1e-6, atol=1e-6)
    assert_same(model, reference, tolerance=1e-5)
    evaluations = optimizer.state[optimizer._params[0]]["func_evals"]
    assert hvd.allgather_object(evaluations) == [evaluations] * world.size
