"""Bucket compression in the optimizer: what it computes, sends and keeps, over every way to reduce."""

import copy

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import batches, mine, mlp, square_loss, twin

KINDS = ["int8", "topk:ratio=0.3", "powersgd:rank=2"]


@pytest.fixture(params=["auto", "horovod"])
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


def fit(world: World, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for batch in batches(world, steps=steps):
        optimizer.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        optimizer.step()


@pytest.mark.parametrize("compression", KINDS)
def test_training_goes_where_it_goes_without(world: World, strategy: str, compression: str) -> None:
    exact, model = mlp(), mlp()
    start = float(square_loss(model, batches(world, steps=1)[0]).detach())
    fit(world, exact, hvd.DistributedOptimizer(torch.optim.SGD(exact.parameters(), lr=0.05), strategy=strategy), 60)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05), compression=compression, strategy=strategy
    )
    fit(world, model, optimizer, 60)
    wanted, got = (float(square_loss(m, batches(world, steps=1)[0]).detach()) for m in (exact, model))
    assert wanted < start / 2 and got < start / 2 and abs(got - wanted) < 0.25 * start
    everyone = hvd.allgather_object([parameter.detach() for parameter in model.parameters()])
    for theirs in everyone:
        assert all(torch.equal(a, b) for a, b in zip(theirs, everyone[0], strict=True))


def test_bytes_are_counted(world: World, strategy: str) -> None:
    if world.size == 1:
        pytest.skip("one rank sends nothing")
    sent = {}
    for compression in ("none", "topk:ratio=0.01"):
        layer = nn.Linear(200, 100)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(layer.parameters(), lr=0.1), compression=compression, strategy=strategy
        )
        layer(torch.ones(1, 200)).sum().backward()
        sent[compression] = optimizer.statistics.bytes_sent
    assert sent["none"] == pytest.approx(2 * (world.size - 1) / world.size * 4 * 20_100)
    assert 0 < sent["topk:ratio=0.01"] < 0.1 * sent["none"]


@pytest.mark.parametrize("compression", KINDS)
def test_state_goes_on_exactly(world: World, strategy: str, compression: str) -> None:
    """What a rank has not sent is part of its optimizer's state."""
    model = mlp()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), compression=compression, strategy=strategy
    )
    fit(world, model, optimizer, 3)
    copied = twin(model)
    again = hvd.DistributedOptimizer(
        torch.optim.SGD(copied.parameters(), lr=0.05, momentum=0.9), compression=compression, strategy=strategy
    )
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fit(world, model, optimizer, 3)
    fit(world, copied, again, 3)
    for mine_now, theirs in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(mine_now, theirs, rtol=0, atol=0 if world.size < 3 or strategy == "auto" else 1e-12)


def test_saved_by_one_rank_for_all(world: World, strategy: str) -> None:
    """The residuals' sum over ranks is the same before and after."""
    if world.size == 1:
        pytest.skip("one rank exchanges nothing")
    model = mlp()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05), compression="topk:ratio=0.1", strategy=strategy
    )
    fit(world, model, optimizer, 2)
    own = optimizer.state_dict()["compression"]
    together = optimizer.consolidated_state_dict()["compression"]
    for index, state in own.items():
        everyone = torch.stack(hvd.allgather_object(state["error"])).sum(dim=0)
        torch.testing.assert_close(together[index]["error"] * world.size, everyone)


def test_refused(world: World) -> None:
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="compression=int8 goes with op=Average and op=Sum"):
        hvd.DistributedOptimizer(adam, compression=hvd.Compression.int8, op=hvd.Max)
    with pytest.raises(ValueError, match="'int9' is not one of none, fp16, bf16, int8, topk, powersgd"):
        hvd.DistributedOptimizer(adam, compression="int9")
    with pytest.raises(TypeError, match="compression=3 must be"):
        hvd.DistributedOptimizer(adam, compression=3)
