"""What cannot be cut is refused in a sentence, on all ranks."""

from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.errors import HvdkitError
from hvdkit.runtime import World
from tests.sharding.problems import loss_of, make, tokens_of, trained


class Odd(torch.optim.SGD):
    """An optimizer that hvdkit does not know."""


def shard(kind: Any, stage: int, **more: Any) -> Any:
    model, _ = make()
    return hvd.shard(model, kind(trained(model), lr=0.1), stage, **more)


@pytest.mark.parametrize(("kind", "stage", "words"), [
    (torch.optim.LBFGS, 1, "LBFGS searches along one direction of all parameters"),
    (torch.optim.SparseAdam, 2, "SparseAdam takes sparse gradients"),
    (Odd, 3, "Odd may need whole matrices, .* use stage 1 or 2, .* or say elementwise=True"),
    (torch.optim.Adafactor, 3, "Adafactor may need whole matrices"),
])  # fmt: skip
def test_optimizers(world: World, kind: Any, stage: int, words: str) -> None:
    with pytest.raises(HvdkitError, match=words):
        shard(kind, stage)
    shard(Odd, 3, elementwise=True)


def test_arguments(world: World) -> None:
    model, _ = make()
    with pytest.raises(ValueError, match="stage=0 is not 1, 2 or 3"):
        hvd.shard(model, torch.optim.SGD(trained(model), lr=0.1), 0)  # type: ignore[arg-type]
    with pytest.raises(HvdkitError, match=r"embedding\.weight require gradients and are not in the optimizer"):
        hvd.shard(model, torch.optim.SGD(trained(model)[1:], lr=0.1), 1)
    with pytest.raises(HvdkitError, match="that are not the model's"):
        hvd.shard(model.layers, torch.optim.SGD(trained(model), lr=0.1), 1)
    with pytest.raises(HvdkitError, match="distributed already"):
        hvd.shard(model, hvd.DistributedOptimizer(torch.optim.SGD(trained(model), lr=0.1)), 1)
    with pytest.raises(HvdkitError, match="at stage 3 each rank keeps its part alone"):
        shard(torch.optim.SGD, 3, shared_weights=True)
    with pytest.raises(HvdkitError, match="is not a module within the model"):
        shard(torch.optim.SGD, 3, layers=[nn.Linear(1, 1)])


def test_use(world: World) -> None:
    model, optimizer = shard(torch.optim.SGD, 2)
    with pytest.raises(HvdkitError, match="takes no more parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with optimizer.no_sync(), pytest.raises(HvdkitError, match="within no_sync"):
        optimizer.step()
    with pytest.raises(HvdkitError, match=r"use hvd\.full_state_dict"):
        optimizer.consolidated_state_dict()
    with pytest.raises(KeyError):
        optimizer.full_parameter("nothing")
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(HvdkitError, match="is not sharded"):
        hvd.full_state_dict(model, plain)
    # Weighing twice without a step has no meaning.
    tokens = tokens_of(world, 0).chunk(world.size)[world.rank]
    optimizer.weigh(loss_of(model, tokens), 3).backward()
    with pytest.raises(HvdkitError, match="already aggregated"):
        optimizer.weigh(loss_of(model, tokens), 3).backward()
