"""`broadcast_optimizer_state` gives every rank the root's state exactly, and takes no step."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World

KINDS = sorted(
    (kind for kind in vars(torch.optim).values() if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)),
    key=lambda kind: kind.__name__,
)
KINDS = [kind for kind in KINDS if kind is not torch.optim.Optimizer]


def make(kind: type[torch.optim.Optimizer], rank: int) -> tuple[nn.Module, Any]:
    """A model and optimizer whose values, state and options differ per rank."""
    torch.manual_seed(rank)
    model: nn.Module
    if kind is torch.optim.SparseAdam:
        model = nn.Embedding(6, 3, sparse=True)
        run = lambda: model(torch.tensor([rank % 6, 1])).pow(2).sum()  # noqa: E731
    else:
        model = nn.Linear(4, 4, bias=kind.__name__ != "Muon")
        run = lambda: model(torch.randn(3, 4)).pow(2).sum()  # noqa: E731
    optimizer = kind(model.parameters(), lr=0.01 * (rank + 1))  # type: ignore[call-arg]
    for _ in range(rank + 1):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = run()
            loss.backward()
            return loss

        optimizer.step(closure)
    return model, optimizer


def equal(left: Any, right: Any) -> bool:
    """Deep equality with tensors compared bit for bit, dtype included."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_optimizer_of_torch(world: World, kind: type[torch.optim.Optimizer]) -> None:
    root = world.size - 1
    model, optimizer = make(kind, world.rank)
    _, wanted = make(kind, root)
    before = copy.deepcopy(model.state_dict())
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    assert equal(optimizer.state_dict(), wanted.state_dict())
    assert equal(model.state_dict(), before), "weights changed"


@pytest.mark.parametrize("wrap_first", [True, False])
def test_empty_state_and_wrapped_optimizers(world: World, wrap_first: bool) -> None:
    model = nn.Linear(3, 3)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    if world.rank:  # ranks other than the root have a state that must go
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    if wrap_first:
        optimizer = hvd.DistributedOptimizer(optimizer)
    before = copy.deepcopy(model.state_dict())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.state_dict()["state"] == {}
    assert equal(model.state_dict(), before)


def test_high_precision_state_of_half_precision_weights(world: World) -> None:
    """`load_state_dict` would cast float32 state to the weights' bfloat16."""
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=torch.tensor(0.1) if world.rank == 0 else 0.3)
    optimizer.state[weight] = {"momentum_buffer": torch.full((4,), 1 / 3 + world.rank), "nested": [1, {"deep": (2.5,)}]}
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.full((4,), 1 / 3))
    assert optimizer.state[weight]["nested"] == [1, {"deep": (2.5,)}]
    assert torch.equal(torch.as_tensor(optimizer.param_groups[0]["lr"]), torch.tensor(0.1))


def test_what_only_the_root_or_only_others_have(world: World) -> None:
    """State that belongs to no parameter, and options that only some ranks' groups carry."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    if world.rank == 0:
        optimizer.state["counters"] = {"seen": torch.tensor([3.0]), "epoch": 2}  # type: ignore[index]
        optimizer.param_groups[0]["initial_lr"] = 0.5
    else:
        optimizer.state["other"] = 1  # type: ignore[index]
        optimizer.param_groups[0]["leftover"] = 1
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert equal(dict(optimizer.state), {"counters": {"seen": torch.tensor([3.0]), "epoch": 2}})
    group = optimizer.param_groups[0]
    assert group["initial_lr"] == 0.5 and "leftover" not in group and group["params"] == [weight]


def test_different_groups_are_an_error_on_all(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot disagree with itself")
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2 if world.rank else 1)]
    with pytest.raises(ValueError, match="parameter groups"):
        hvd.broadcast_optimizer_state(torch.optim.SGD(weights, lr=0.1), root_rank=0)


def test_broadcast_parameters_of_mixed_dtypes(world: World) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2).to(torch.bfloat16))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(world.rank + 1)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    assert all(bool((value == 1).all()) for value in model.state_dict().values())
    hvd.broadcast_parameters(list(model.named_parameters()), root_rank=0)
