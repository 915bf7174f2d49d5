"""What a rank holds is what the formulas of the ZeRO paper say."""

import gc
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.collectives import why_no_direct
from hvdkit.runtime import World
from hvdkit.sharding.memory import state_bytes
from tests.sharding.problems import loss_of, make, tokens_of, trained

WAYS = [(1, False), (2, False), (3, False), (1, True), (2, True)]


def live_bytes() -> int:
    """Bytes of all tensors there are, each memory once; an independent count."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, nn.Parameter) and item.device.type == "cpu" and item.layout == torch.strided:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(("stage", "shared"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_rank_within_5_percent_of_the_formula(
    world: World, stage: int, shared: bool, dtype: torch.dtype
) -> None:
    if shared and why_no_direct(world):
        pytest.skip("Gloo has no shared memory of hvdkit's")
    model, reference = make(dtype, layers=6, width=96)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    del reference
    before = live_bytes() - sum(p.nbytes for p in model.parameters())
    optimizer: Any = torch.optim.AdamW(trained(model), lr=0.01)
    model, optimizer = hvd.shard(model, optimizer, stage, shared_weights=shared)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model, tokens_of(world, step).chunk(world.size)[world.rank]).backward()
        optimizer.step()
    wanted = state_bytes(stage, whole, world.size, itemsize=dtype.itemsize, frozen=frozen, shared_weights=shared)
    held = optimizer.memory()
    mean = [sum(values) / world.size for values in zip(*world_wide(held), strict=True)]
    assert mean == pytest.approx([wanted.parameters, wanted.gradients, wanted.optimizer], rel=0.05)
    assert held.total == pytest.approx(wanted.total, rel=0.1)  # the first ranks have the odd elements
    # Counted another way: all tensors that are alive now, of which gradients at stage 1 are this rank's part alone.
    alive = live_bytes() - before
    gradients = wanted.gradients / (world.size if stage == 1 else 1) * (2 if stage == 1 and dtype.itemsize == 2 else 1)
    weights = wanted.parameters if not shared else whole * dtype.itemsize  # the same memory, seen by each rank
    assert alive == pytest.approx(weights + gradients + wanted.optimizer, rel=0.1)


def world_wide(held: Any) -> list[tuple[float, float, float]]:
    return [tuple(part) for part in hvd.allgather_object((held.parameters, held.gradients, held.optimizer))]


def test_stage_3_never_holds_more_than_two_layers_whole(world: World) -> None:
    """Gathered parameters and gradients on their way, at any moment: the model's own, and two of six layers."""
    if world.size == 1:
        pytest.skip("one rank holds everything")
    model, _ = make(layers=6, width=96)
    layer = sum(p.nbytes for p in model.layers[0].parameters())
    own = sum(p.nbytes for p in model.parameters()) - 6 * layer
    optimizer: Any = torch.optim.SGD(trained(model), lr=0.01)
    model, optimizer = hvd.shard(model, optimizer, 3, overlap=False)
    shards = optimizer.shards
    most = 0

    def note(*_: Any) -> None:
        nonlocal most
        whole = sum(
            shard.flat.numel * shard.flat.dtype.itemsize for shard in shards.shards if shard.storage.is_whole
        )  # fmt: skip
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        most = max(most, whole + gradients)

    for module in model.layers:
        module.up.register_forward_hook(note)
        module.up.register_full_backward_hook(note)
        module.norm.weight.register_post_accumulate_grad_hook(note)
    loss_of(model, tokens_of(world, 0).chunk(world.size)[world.rank]).backward()
    note()
    assert layer < most <= own + 3 * layer
