"""`hvd.merge_` on the ranks' models gives what `merge_states` gives of all of them, bit for bit."""

from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.errors import DivergenceError, MergeError
from hvdkit.merge import RULES, merge_states
from hvdkit.merge.blocks import BLOCK_ELEMENTS
from hvdkit.runtime import World, gather_objects


class Model(nn.Module):
    """Tied, frozen, of several dtypes and blocks, with buffers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(BLOCK_ELEMENTS // 16, 40)
        self.norm = nn.BatchNorm1d(40).double()
        self.inner = nn.Linear(40, 40).bfloat16().requires_grad_(False)
        self.head = nn.Linear(40, BLOCK_ELEMENTS // 16)
        self.head.weight = self.embed.weight
        self.register_buffer("transposed", torch.randn(7, 3).T)


def usable(rule: str, ranks: int) -> bool:
    return RULES[rule].only_models in (None, ranks) and ranks >= RULES[rule].least_models


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_merge_in_memory(rule: str, world: World) -> None:
    if not usable(rule, world.size):
        pytest.skip(f"{rule} does not merge {world.size} submodels")
    weights = [1.0, 0.5, 0.25, 2.0][: world.size]
    model, base = Model(world.rank + 1), Model(0)
    parameters = list(map(id, model.parameters()))
    hvd.merge_(model, rule, base=base, weights=weights, density=0.4)
    wanted = merge_states([Model(rank + 1).state_dict() for rank in range(world.size)], rule, base=base.state_dict(),
                          weights=weights, density=0.4)  # fmt: skip
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert model.head.weight is model.embed.weight and list(map(id, model.parameters())) == parameters


def test_weights_of_this_rank(world: World) -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, float(world.rank))
    nn.init.constant_(model.bias, 1.0)
    hvd.merge_(model, weights=world.rank + 1.0)
    total = sum(rank + 1 for rank in range(world.size))
    assert model.weight[0, 0].item() == pytest.approx(sum(rank * (rank + 1) for rank in range(world.size)) / total)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"rule": "tie"}, ValueError, "is not one of"),
        ({"rule": "ties"}, ValueError, "pass base="),
        ({"weights": [1.0] * 99}, ValueError, "99 weights for"),
        ({"weights": 0.0}, ValueError, "add up to 0"),
        ({"nan": True}, MergeError, "weight holds NaN"),
        ({"base": {}, "rule": "ties"}, MergeError, "the base has no weight"),
    ],
)
def test_refused_on_all_ranks_with_nothing_changed(
    change: dict[str, Any], kind: type[Exception], said: str, world: World
) -> None:
    model = nn.Linear(3, 2)
    if change.pop("nan", False) and world.rank == world.size - 1:
        nn.init.constant_(model.weight, float("nan"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(kind, match=said):
        hvd.merge_(model, **change)
    assert all(torch.equal(tensor, before[name]) or tensor.isnan().any() for name, tensor in model.state_dict().items())
    assert len(gather_objects(world, "still here")) == world.size


@pytest.mark.parametrize("difference", ["shape", "name", "dtype", "whole number", "rule", "scale"])
def test_ranks_that_disagree(difference: str, world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    is_last = world.rank == world.size - 1
    model: nn.Module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    more: dict[str, Any] = {}
    if is_last and difference == "shape":
        model[0] = nn.Linear(4, 2)  # type: ignore[index]
    if is_last and difference == "name":
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(3, 2))
    if is_last and difference == "dtype":
        model.double()
    if is_last and difference == "whole number":
        model[1].num_batches_tracked += 1  # type: ignore[index]
    if difference == "rule":
        more = {"rule": "karcher" if is_last else "average"}
    if difference == "scale":
        more = {"rule": "ties", "base": model, "scale": 2.0 if is_last else 1.0}
    with pytest.raises(DivergenceError, match="merge_: "):
        hvd.merge_(model, **more)
    assert len(gather_objects(world, "still here")) == world.size
