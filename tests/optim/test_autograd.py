"""Gradients are aggregated when `backward()` returns, whatever kind of backward it was."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin


class Checkpointed(nn.Module):
    """Segments under activation checkpointing, nested, with one layer used in three of them."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.shared, self.leave = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.double()
        self.reentrant = reentrant

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.shared(x))
        return checkpoint(lambda z: torch.tanh(self.shared(z)), y, use_reentrant=self.reentrant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reentrant is None:
            y = torch.tanh(self.enter(x))
            for _ in range(3):
                y = torch.tanh(self.shared(y))
            return self.leave(y)
        y = checkpoint(self.enter, x.requires_grad_(), use_reentrant=self.reentrant)
        y = checkpoint(self._inner, torch.tanh(y), use_reentrant=self.reentrant)
        y = checkpoint(lambda z: torch.tanh(self.shared(z)), y, use_reentrant=self.reentrant)
        return checkpoint(self.leave, y, use_reentrant=self.reentrant)


# torch says so of a segment inside a segment: the outer one's first pass records nothing.
NESTED = "ignore:None of the inputs have requires_grad=True"


@pytest.mark.filterwarnings(NESTED)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("bucket_bytes", [0, 2**20])
def test_activation_checkpointing(world: World, reentrant: bool, bucket_bytes: int) -> None:
    model, reference = Checkpointed(reentrant), Checkpointed(None)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=bucket_bytes)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for batch in batches(world, steps=4):
        optimizer.zero_grad()
        plain.zero_grad()
        square_loss(model, mine(world, batch.clone())).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
        optimizer.step()
        plain.step()
    assert optimizer.statistics.rounds == 4  # aggregated once per backward, not once per segment


@pytest.mark.filterwarnings(NESTED)
def test_checkpointing_comes_and_goes(world: World) -> None:
    """A parameter that accumulates more often than agreed is sent again, one that does so less often at the end."""
    model, reference = Checkpointed(False), Checkpointed(None)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=0)
    for step, batch in enumerate(batches(world, steps=5)):
        model.reentrant = step in (1, 3) and (step == 1 or world.rank == 0)
        optimizer.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch.clone())).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)


def test_compiled_model(world: World) -> None:
    model = mlp()
    reference = twin(model)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in batches(world, steps=2):
        optimizer.zero_grad()
        reference.zero_grad()
        square_loss(compiled, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch scales gradients on CPUs from 2.3 on")
def test_autocast_and_grad_scaler(world: World) -> None:
    model = mlp(torch.float32)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, batch in enumerate(batches(world, steps=4, dtype=torch.float32)):
        optimizer.zero_grad()
        rows = mine(world, batch)
        if step == 2 and world.rank == world.size - 1:
            rows = rows * float("inf")  # one rank overflows: all must skip this step
        before = [p.detach().clone() for p in model.parameters()]
        reference = twin(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = square_loss(model, rows)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        changed = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert changed == (step != 2)
        if step != 2:
            square_loss(reference, batch).backward()
            wanted = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            torch.testing.assert_close(norm, wanted, rtol=2e-2, atol=0)  # bfloat16 matrices
    assert hvd.allgather_object(scaler.get_scale()) == [512.0] * world.size
    for parameter in model.parameters():
        assert torch.equal(hvd.broadcast(parameter.detach(), root_rank=0), parameter)


def test_autograd_grad_aggregates_nothing(world: World) -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    (batch,) = batches(world, steps=1)
    if world.rank == 0:  # nobody else takes part
        gradients = torch.autograd.grad(square_loss(model, mine(world, batch)), list(model.parameters()))
        local = twin(model)
        square_loss(local, mine(world, batch)).backward()
        torch.testing.assert_close(list(gradients), [p.grad for p in local.parameters()])
    assert optimizer.statistics.rounds == 0
    assert all(p.grad is None for p in model.parameters())


def penalised(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """A loss with the norm of its own gradient: backward runs through a backward."""
    loss = square_loss(model, rows)
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + torch.stack([gradient.pow(2).sum() for gradient in gradients]).sum()


def test_double_backward(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in batches(world, steps=2):
        optimizer.zero_grad()
        reference.zero_grad()
        penalised(model, mine(world, batch)).backward()
        parts = [penalised(reference, rows) for rows in batch.chunk(world.size)]
        torch.stack(parts).mean().backward()
        assert_same_gradients(model, reference)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_create_graph(world: World) -> None:
    """`.grad` itself belongs to a graph then; its values are the aggregated ones all the same."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward(create_graph=True)
    square_loss(reference, batch).backward()
    assert_same_gradients(model, reference)
    optimizer.step()
    optimizer.zero_grad()


def test_retained_graph_and_two_losses(world: World) -> None:
    """Two backward passes over one graph, two losses one after the other: each adds its average."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=100)
    for _ in range(2):
        optimizer.zero_grad()
        reference.zero_grad()
        (batch,) = batches(world, steps=1)
        for layers, rows in ((model, mine(world, batch)), (reference, batch)):
            out = layers(rows)
            out.pow(2).mean().backward(retain_graph=True)
            out.pow(2).mean().backward(retain_graph=True)
            out.exp().mean().backward()
        assert_same_gradients(model, reference)


def test_backward_of_chosen_inputs(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in batches(world, steps=2):
        optimizer.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch)).backward(inputs=[model[2].weight, model[4].bias])
        square_loss(reference, batch).backward(inputs=[reference[2].weight, reference[4].bias])
        assert_same_gradients(model, reference)
        optimizer.step()
        reference.load_state_dict(model.state_dict())


def test_hooks_of_the_user(world: World) -> None:
    """A tensor hook changes the local gradient before it is sent; a hook after accumulation sees it."""
    model = mlp()
    reference = twin(model)
    seen: dict[str, torch.Tensor] = {}
    model[0].weight.register_hook(lambda gradient: gradient * 2)
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.update(before=p.grad.clone()))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.update(after=p.grad.clone()))
    reference[0].weight.register_hook(lambda gradient: gradient * 2)
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward()
    local = twin(reference)
    local[0].weight.register_hook(lambda gradient: gradient * 2)
    square_loss(local, mine(world, batch)).backward()
    for which in ("before", "after"):
        torch.testing.assert_close(seen[which], local[0].weight.grad)
    square_loss(reference, batch).backward()
    assert_same_gradients(model, reference)
    optimizer.step()


@pytest.mark.parametrize("forget", ["optimizer.zero_grad", "model.zero_grad"])
def test_an_error_in_backward_that_all_ranks_catch(world: World, forget: str) -> None:
    """Some buckets are under way when the error comes; the next step must not meet them."""
    model = mlp()
    reference = twin(model)
    optimizer: Any = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=0)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step, batch in enumerate(batches(world, steps=4)):
        if step == 2:
            handle = model[0].weight.register_hook(lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                square_loss(model, mine(world, batch)).backward()
            handle.remove()
            (optimizer if forget == "optimizer.zero_grad" else model).zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        optimizer.step()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    assert_same(model, reference)
