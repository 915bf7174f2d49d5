"""States go from any number of ranks and stage to any other, and to an unsharded model and back."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.errors import HvdkitError
from hvdkit.runtime import World
from tests.sharding.problems import Model, assert_same, loss_of, make, tokens_of, trained

STAGES = (1, 2, 3)


def adamw(model: Model) -> torch.optim.AdamW:
    groups = [{"params": [p for p in trained(model) if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in trained(model) if p.dim() < 2], "lr": 0.003}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=0.01)


def train(world: World, model: Any, optimizer: Any, reference: Any, plain: Any, steps: range) -> None:
    for step in steps:
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, tokens.chunk(world.size)[world.rank]).backward()
        loss_of(reference, tokens).backward()
        optimizer.step()
        plain.step()


@pytest.mark.parametrize("stage", STAGES)
def test_the_whole_state_is_what_one_process_has(world: World, stage: int) -> None:
    model, reference = make()
    model.calls += world.rank  # rank 0's counts
    plain = adamw(reference)
    model, optimizer = hvd.shard(model, adamw(model), stage)
    train(world, model, optimizer, reference, plain, range(3))
    state = hvd.full_state_dict(model, optimizer, on_rank=None)
    wanted = reference.state_dict()
    assert state["model"].keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-10, atol=1e-10)
    wanted = plain.state_dict()
    assert state["optimizer"]["param_groups"] == wanted["param_groups"]
    assert state["optimizer"]["state"].keys() == wanted["state"].keys()
    for number, entries in wanted["state"].items():
        assert state["optimizer"]["state"][number].keys() == entries.keys()
        for key, value in entries.items():
            torch.testing.assert_close(state["optimizer"]["state"][number][key], value, rtol=1e-10, atol=1e-10)
    on_root = hvd.full_state_dict(model, optimizer)
    assert on_root.keys() == (state.keys() if world.rank == 0 else set())
    # An unsharded model goes on from it as the sharded one does.
    other = Model().double()
    other_optimizer = adamw(other)
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(world, model, optimizer, other, other_optimizer, range(3, 6))
    assert_same(optimizer, other)


@pytest.mark.parametrize("before", STAGES)
@pytest.mark.parametrize("after", STAGES)
def test_another_stage_goes_on(world: World, before: int, after: int) -> None:
    model, reference = make()
    plain = adamw(reference)
    model, optimizer = hvd.shard(model, adamw(model), before)
    train(world, model, optimizer, reference, plain, range(2))
    state = hvd.full_state_dict(model, optimizer)
    other = Model().double()
    torch.nn.init.zeros_(other.frozen.weight)
    other, other_optimizer = hvd.shard(other, adamw(other), after)
    hvd.load_full_state_dict(other, other_optimizer, state or None)
    train(world, other, other_optimizer, reference, plain, range(2, 5))
    assert_same(other_optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_master_weights_are_loaded_unrounded(world: World, stage: int) -> None:
    """Of small parameters too, which lie in one flat and are loaded one after another."""
    model, _ = make(torch.bfloat16)
    model, optimizer = hvd.shard(model, adamw(model), stage)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, tokens_of(world, step).chunk(world.size)[world.rank]).backward()
        optimizer.step()
    state = hvd.full_state_dict(model, optimizer)
    other, _ = make(torch.bfloat16)
    other, other_optimizer = hvd.shard(other, adamw(other), stage)
    hvd.load_full_state_dict(other, other_optimizer, state or None)
    pairs = list(zip(optimizer.shards.held(), other_optimizer.shards.held(), strict=True))  # type: ignore[attr-defined]
    assert any(held.target is not None and not torch.equal(held.tensor, held.target.float()) for held, _ in pairs)
    for held, loaded in pairs:
        torch.testing.assert_close(loaded.tensor, held.tensor, rtol=0, atol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_an_optimizer_with_state_is_cut(world: World, stage: int) -> None:
    model, reference = make()
    optimizer, plain = adamw(model), adamw(reference)
    for item, its in ((model, optimizer), (reference, plain)):
        loss_of(item, tokens_of(world, 9)).backward()
        its.step()
    model, optimizer = hvd.shard(model, optimizer, stage)
    train(world, model, optimizer, reference, plain, range(3))
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_parts(world: World, shared_path: Path, stage: int) -> None:
    model, reference = make()
    plain = adamw(reference)
    model, optimizer = hvd.shard(model, adamw(model), stage)
    train(world, model, optimizer, reference, plain, range(2))
    part = hvd.sharded_state_dict(model, optimizer)
    torch.save(part, shared_path / f"{world.rank}.pt")
    hvd.barrier()
    parts = [torch.load(shared_path / f"{rank}.pt", weights_only=True) for rank in range(world.size)]
    # As many ranks:
    other = Model().double()
    other, other_optimizer = hvd.shard(other, adamw(other), stage)
    hvd.load_sharded_state_dict(other, other_optimizer, parts[world.rank])
    # Any number: what one process has.
    whole = hvd.join_parts(parts[::-1])
    single = Model().double()
    single_optimizer = adamw(single)
    single.load_state_dict(whole["model"])
    single_optimizer.load_state_dict(whole["optimizer"])
    train(world, other, other_optimizer, reference, plain, range(2, 4))
    for step in range(2, 4):
        single_optimizer.zero_grad()
        loss_of(single, tokens_of(world, step)).backward()
        single_optimizer.step()
    assert_same(other_optimizer, reference)
    assert_same(other_optimizer, single)


def test_what_does_not_fit_is_refused_on_all_ranks_and_nothing_changes(world: World) -> None:
    model, reference = make()
    plain = adamw(reference)
    model, optimizer = hvd.shard(model, adamw(model), 2)
    part = hvd.sharded_state_dict(model, optimizer)
    state = hvd.full_state_dict(model, optimizer)
    wider, narrow = Model(width=16).double(), {**state, "model": {}}
    wider_sharded, wider_optimizer = hvd.shard(wider, adamw(wider), 2)
    with pytest.raises(HvdkitError, match=r"embedding.weight has shape \(11, 24\) in the saved model and \(11, 16\)"):
        hvd.load_full_state_dict(wider_sharded, wider_optimizer, state or None)
    with pytest.raises(HvdkitError, match=r"the saved model has no embedding\.weight"):
        hvd.load_full_state_dict(model, optimizer, narrow)
    with pytest.raises(HvdkitError, match="cut in another way"):
        hvd.load_sharded_state_dict(wider_sharded, wider_optimizer, part)
    with pytest.raises(HvdkitError, match=f"rank {world.size - 1} the part is that of rank 7 of 9"):
        mine = {**part, "rank": 7, "size": 9} if world.rank == world.size - 1 else part
        hvd.load_sharded_state_dict(model, optimizer, mine)
    with pytest.raises(HvdkitError, match="not those of all"):
        hvd.join_parts([{**part, "size": world.size + 1}])
    train(world, model, optimizer, reference, plain, range(2))
    assert_same(optimizer, reference)


def test_a_model_that_is_cut_does_not_give_a_state_of_nothing(world: World) -> None:
    model, reference = make()
    model, optimizer = hvd.shard(model, adamw(model), 3)
    assert bool(torch.isnan(model.embedding.weight).all()) and model.embedding.weight.shape == (11, 24)
    for refused in (
        model.state_dict,
        model.layers[0].state_dict,
        lambda: model.load_state_dict(reference.state_dict()),
    ):
        with pytest.raises(HvdkitError, match="full_state_dict"):
            refused()
    with optimizer.whole_on(world.size - 1):  # type: ignore[attr-defined]
        if world.rank == world.size - 1:
            torch.testing.assert_close(model.state_dict(), reference.state_dict())
            torch.testing.assert_close(model(tokens_of(world, 0)), reference(tokens_of(world, 0)))
    with pytest.raises(TypeError, match="cannot be copied"):
        torch.save(optimizer, "/dev/null")
