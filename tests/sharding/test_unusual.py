"""Models and training loops that are not a row of layers with one backward each."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.errors import HvdkitError
from hvdkit.runtime import World
from tests.sharding.problems import assert_same, loss_of, make, tokens_of, trained

STAGES = (1, 2, 3)


class Nested(nn.Module):
    """Lists of lists, a part that is called by itself, a scalar, an empty parameter, a layer that may do nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.blocks = nn.ModuleList(
            [nn.ModuleList([nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))]) for _ in range(2)]
        )
        self.skipped = nn.ModuleList([Skips(), Skips()])
        self.scale, self.nothing = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in self.blocks:  # type: ignore[misc]
            x = x + second(torch.tanh(first(x)))
        for layer in self.skipped:
            x = layer(x)
        return x * self.scale


class Skips(nn.Module):
    """Returns what it is given, when it is given few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if len(x) < 2 else torch.tanh(self.inner(x))


def rows_of(world: World, step: int, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(world.size * rows, 6, generator=generator, dtype=torch.float64)


def mine(world: World, rows: torch.Tensor) -> torch.Tensor:
    return rows.chunk(world.size)[world.rank]


def both(stage: int, model: nn.Module, kind: Any = torch.optim.AdamW) -> Any:
    model = model.double()
    reference = copy.deepcopy(model)
    plain = kind(trained(reference), lr=0.01)
    sharded, optimizer = hvd.shard(model, kind(trained(model), lr=0.01), stage)  # type: ignore[arg-type]
    return sharded, optimizer, reference, plain


@pytest.mark.parametrize("stage", STAGES)
def test_nested_lists_scalars_and_layers_that_do_nothing(world: World, stage: int) -> None:
    model, optimizer, reference, plain = both(stage, Nested())
    for step in range(4):
        rows = rows_of(world, step, rows=1 + step % 2)
        optimizer.zero_grad()
        plain.zero_grad()
        model(mine(world, rows)).pow(2).sum(dim=-1).mean().backward()
        reference(rows).pow(2).sum(dim=-1).mean().backward() if step % 2 else torch.stack(
            [reference(part).pow(2).sum(dim=-1).mean() for part in rows.chunk(world.size)]
        ).mean().backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)
    state = hvd.full_state_dict(model, optimizer, on_rank=None)
    again = Nested().double()
    stepped = torch.optim.AdamW(trained(again), lr=0.01)
    again.load_state_dict(state["model"])
    stepped.load_state_dict(state["optimizer"])
    other, cut = hvd.shard(again, stepped, stage)  # type: ignore[arg-type] # cuts the state, the scalar's too
    for item, its in ((model, optimizer), (other, cut)):
        its.zero_grad()
        item(mine(world, rows)).sum().backward()
        its.step()
    for name, _ in reference.named_parameters():
        torch.testing.assert_close(cut.full_parameter(name), optimizer.full_parameter(name))  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", STAGES)
def test_backward_twice_over_one_graph(world: World, stage: int) -> None:
    model, optimizer, reference, plain = both(stage, Nested(), torch.optim.SGD)
    rows = rows_of(world, 0)
    for item, given in ((model, mine(world, rows)), (reference, rows)):
        loss = item(given).pow(2).sum(dim=-1).mean()
        loss.backward(retain_graph=True)
        loss.backward()
    optimizer.step()
    plain.step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_penalty_before_the_loss(world: World, stage: int) -> None:
    """A backward that reaches no parameter, and one through it."""
    model, optimizer, reference, plain = both(stage, Nested(), torch.optim.SGD)
    for step in range(2):
        rows = rows_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        for item, its, given in ((model, optimizer, mine(world, rows)), (reference, None, rows)):
            given = given.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(item(given).sum(), given)
            loss = (item(given).pow(2).sum(dim=-1) + slope.detach().sum(dim=-1)).mean()
            (loss if its is None else its.weigh(loss, len(given))).backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_sparse_gradients_and_zero_grad_of_the_model(world: World, stage: int) -> None:
    torch.manual_seed(1)
    model, optimizer, reference, plain = both(stage, nn.Embedding(7, 4, sparse=True), torch.optim.SGD)
    for step in range(3):
        ids = torch.tensor([[rank, step, 6] for rank in range(world.size)])
        model.zero_grad()
        plain.zero_grad()
        model(ids[world.rank]).pow(2).sum().backward()
        torch.stack([reference(row).pow(2).sum() for row in ids]).mean().backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)


def test_a_part_that_runs_by_itself_is_told_why_it_cannot(world: World) -> None:
    model, _, _, _ = both(3, Nested())
    with pytest.raises(
        HvdkitError, match="a Linear runs while its weights are not gathered: call the model, or the Skips"
    ):
        model.skipped[0].inner(torch.zeros(1, 6).double())


def test_after_an_exception_in_backward_training_goes_on(world: World) -> None:
    model, optimizer, reference, plain = both(3, Nested())

    def fail(_: Any) -> None:
        raise RuntimeError("stop here")

    rows = rows_of(world, 0)
    out = model(mine(world, rows))
    out.register_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        out.sum().backward()
    for step in range(2):
        optimizer.zero_grad()
        plain.zero_grad()
        rows = rows_of(world, step)
        model(mine(world, rows)).pow(2).sum(dim=-1).mean().backward()
        reference(rows).pow(2).sum(dim=-1).mean().backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_that_was_loaded_stays_as_it_was(world: World, stage: int) -> None:
    """Loaded twice, with a step between: the same both times, on the rank that has it too."""
    model, optimizer, _, _ = both(stage, Nested())
    model(mine(world, rows_of(world, 0))).sum().backward()
    optimizer.step()
    state = hvd.full_state_dict(model, optimizer)
    found = []
    for _ in range(2):
        hvd.load_full_state_dict(model, optimizer, state or None)
        optimizer.zero_grad()
        model(mine(world, rows_of(world, 1))).sum().backward()
        optimizer.step()
        found.append([optimizer.full_parameter(name) for name in optimizer.shards.names])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_that_the_model_loads_reach_the_master_weights(world: World, stage: int) -> None:
    model, _ = make(torch.bfloat16)
    other, _ = make(torch.bfloat16)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    model, optimizer = hvd.shard(model, torch.optim.SGD(trained(model), lr=1e-6), stage)  # type: ignore[arg-type]
    model.load_state_dict(other.state_dict())
    loss_of(model, tokens_of(world, 0).chunk(world.size)[world.rank]).backward()
    optimizer.step()
    assert_same(optimizer, other, 0.01)


def test_memory_that_was_replaced_is_noticed(world: World) -> None:
    model, optimizer, _, _ = both(1, Nested())
    model.float()
    with pytest.raises(HvdkitError, match="memory was replaced"):
        optimizer.step()


def test_ranks_with_other_models_are_told(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    model = nn.Linear(3 + world.rank % 2, 2)
    with pytest.raises(HvdkitError, match="ranks disagree"):
        hvd.shard(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
