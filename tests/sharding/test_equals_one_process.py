"""N ranks with a sharded model give what one unsharded process gives on the union of their batches."""

from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.collectives import why_no_direct
from hvdkit.runtime import World
from tests.sharding.problems import assert_same, loss_of, make, tokens_of, trained

STAGES = (1, 2, 3)
KINDS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    (torch.optim.RMSprop, {"lr": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.05}),
]


def shard_both(world: World, stage: int, kind: Any = torch.optim.AdamW, options: Any = None, shared: bool = False,
               model_options: Any = None, dtype: torch.dtype = torch.float64, **more: Any) -> Any:  # fmt: skip
    if shared and why_no_direct(world):
        pytest.skip("Gloo has no shared memory of hvdkit's")
    model, reference = make(dtype, **(model_options or {}))
    options = options or {"lr": 0.01}
    optimizer = kind(trained(model), **options)
    model, optimizer = hvd.shard(model, optimizer, stage, shared_weights=shared, **more)
    return model, optimizer, reference, kind(trained(reference), **options)


def mine(world: World, tokens: torch.Tensor) -> torch.Tensor:
    return tokens.chunk(world.size)[world.rank]


WAYS = [(1, False), (2, False), (3, False), (1, True), (2, True)]


@pytest.mark.parametrize(("stage", "shared"), WAYS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_every_step(world: World, stage: int, shared: bool, kind: Any, options: Any) -> None:
    if world.backend == "gloo" and kind is not torch.optim.AdamW:
        pytest.skip("the engine takes a millisecond for each message")
    model, optimizer, reference, plain = shard_both(world, stage, kind, options, shared)
    for step in range(4):
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, mine(world, tokens)).backward()
        loss_of(reference, tokens).backward()
        optimizer.step()
        plain.step()
        assert_same(optimizer, reference)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(model, tokens), loss_of(reference, tokens))


@pytest.mark.parametrize(("dtype", "kind", "losses", "parameters"), [
    (torch.float32, torch.optim.SGD, 1e-5, 1e-5),
    (torch.float64, torch.optim.AdamW, 1e-10, 1e-9),
])  # fmt: skip
@pytest.mark.parametrize(("stage", "shared"), WAYS)
def test_fifty_steps(
    world: World, stage: int, shared: bool, dtype: torch.dtype, kind: Any, losses: float, parameters: float
) -> None:
    model, optimizer, reference, plain = shard_both(world, stage, kind, {"lr": 0.01}, shared, dtype=dtype)
    for step in range(5 if world.backend == "gloo" else 50):
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        loss = loss_of(model, mine(world, tokens))
        loss.backward()
        wanted = loss_of(reference, tokens)
        wanted.backward()
        optimizer.step()
        plain.step()
        mean = hvd.allreduce(loss.detach(), name="loss")
        torch.testing.assert_close(mean, wanted.detach(), rtol=losses, atol=losses)
    assert_same(optimizer, reference, parameters)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpoints", ["reentrant", "not reentrant"])
def test_activation_checkpointing(world: World, stage: int, checkpoints: str) -> None:
    model, optimizer, reference, plain = shard_both(world, stage, model_options={"checkpoints": checkpoints})
    for step in range(3):
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, mine(world, tokens)).backward()
        loss_of(reference, tokens).backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_weighing_clipping_and_a_scheduler(world: World, stage: int) -> None:
    model, reference = make()
    groups = [
        [{"params": [p for p in trained(m) if p.dim() > 1], "weight_decay": 0.1},
         {"params": [p for p in trained(m) if p.dim() < 2], "lr": 0.003}]
        for m in (model, reference)
    ]  # fmt: skip
    optimizer, plain = (torch.optim.AdamW(group, lr=0.01) for group in groups)
    schedulers = [torch.optim.lr_scheduler.StepLR(item, 1, 0.7) for item in (optimizer, plain)]
    model, optimizer = hvd.shard(model, optimizer, stage)
    for step in range(4):
        optimizer.zero_grad()
        plain.zero_grad()
        tokens = tokens_of(world, step, rows=3)
        parts = [rows.split([1 + rank % 2, 2 - rank % 2]) for rank, rows in enumerate(tokens.chunk(world.size))]
        with optimizer.no_sync():
            rows = parts[world.rank][0]
            optimizer.weigh(loss_of(model, rows), len(rows)).backward()
        rows = parts[world.rank][1]
        optimizer.weigh(loss_of(model, rows), len(rows)).backward()
        loss_of(reference, tokens).backward()
        norm = optimizer.clip_grad_norm_(0.05)
        wanted = torch.nn.utils.clip_grad_norm_(trained(reference), 0.05)
        torch.testing.assert_close(norm, wanted.float())
        for item in (optimizer, plain, *schedulers):
            item.step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_that_some_or_all_ranks_do_not_use(world: World, stage: int) -> None:
    """Stage 3 needs the same layers on all ranks; before, a rank may leave one out."""
    model, optimizer, reference, plain = shard_both(world, stage)
    for step in range(3):
        skips = [step if stage == 3 or rank == 0 else None for rank in range(world.size)]
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, mine(world, tokens), skip=skips[world.rank]).backward()
        losses = [
            loss_of(reference, rows, skip=skip) for rows, skip in zip(tokens.chunk(world.size), skips, strict=True)
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_with_master_weights(world: World, stage: int) -> None:
    """The oracle steps float32 weights with the bfloat16 model's gradients, averaged in float32."""
    model, optimizer, reference, _ = shard_both(world, stage, torch.optim.SGD, {"lr": 0.05}, dtype=torch.bfloat16)
    masters = [p.detach().float() for p in trained(reference)]
    for step in range(4):
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        loss_of(model, mine(world, tokens)).backward()
        optimizer.step()
        total = [torch.zeros_like(master) for master in masters]
        for rows in tokens.chunk(world.size):
            reference.zero_grad()
            loss_of(reference, rows).backward()
            for summed, parameter in zip(total, trained(reference), strict=True):
                assert parameter.grad is not None
                summed += parameter.grad.float() / world.size
        with torch.no_grad():
            for master, summed, parameter in zip(masters, total, trained(reference), strict=True):
                master -= 0.05 * summed.bfloat16().float()
                parameter.copy_(master)
    assert_same(optimizer, reference, 0.02)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("name", "tolerance"), [("Muon", 5e-3), ("Adafactor", 1e-8)])
def test_optimizers_of_whole_matrices(world: World, stage: int, name: str, tolerance: float) -> None:
    """Muon computes in bfloat16, which rounds off what the order of sums leaves otherwise."""
    kind = getattr(torch.optim, name, None)
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    model, reference = make()
    for item in (model, reference):
        for parameter in item.parameters():
            parameter.requires_grad_(parameter.dim() == 2 and parameter.requires_grad)
    optimizer, plain = kind(trained(model), lr=0.01), kind(trained(reference), lr=0.01)
    model, optimizer = hvd.shard(model, optimizer, stage)
    for step in range(2):
        tokens = tokens_of(world, step)
        optimizer.zero_grad()
        plain.zero_grad()
        loss_of(model, mine(world, tokens)).backward()
        loss_of(reference, tokens).backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference, tolerance)


@pytest.mark.parametrize("stage", STAGES)
def test_several_passes_per_step(world: World, stage: int) -> None:
    model, optimizer, reference, plain = shard_both(world, stage, backward_passes_per_step=2)
    for step in range(2):
        optimizer.zero_grad()
        plain.zero_grad()
        for part in range(2):
            tokens = tokens_of(world, 2 * step + part)
            loss_of(model, mine(world, tokens)).backward()
            loss_of(reference, tokens).backward()
        optimizer.step()
        plain.step()
    assert_same(optimizer, reference)
