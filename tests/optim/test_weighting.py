"""Weighted averaging: grad = sum_i w_i grad_i / sum_i w_i, with weights counted per step or fixed per rank."""

from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin


def test_uneven_batches_weighed_by_tokens(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(model.parameters(), lr=0.01), bucket_bytes=200)
    plain = torch.optim.AdamW(reference.parameters(), lr=0.01)
    for step, batch in enumerate(batches(world, steps=5, rows=7)):
        # Rank r takes r + step rows, split in micro-batches of at most 2; the last rank sometimes has none.
        counts = [0 if rank == world.size - 1 and step % 2 and rank else rank + step + 1 for rank in range(world.size)]
        parts = list(batch[: sum(counts)].split(counts))
        optimizer.zero_grad()
        micro = [rows for rows in parts[world.rank].split(2) if len(rows)]
        for rows in micro[:-1]:
            with optimizer.no_sync():
                optimizer.weigh(square_loss(model, rows), len(rows)).backward()
        for rows in micro[-1:]:
            optimizer.weigh(square_loss(model, rows), len(rows)).backward()
        optimizer.synchronize()
        plain.zero_grad()
        square_loss(reference, batch[: sum(counts)]).backward()
        assert_same_gradients(model, reference)
        optimizer.step()
        plain.step()
    assert_same(model, reference, tolerance=1e-9)


def test_weight_zero_silences_even_nan(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    (batch,) = batches(world, steps=1)
    silent = world.size > 1 and world.rank == world.size - 1
    loss = square_loss(model, mine(world, batch)) * (float("nan") if silent else 1.0)
    optimizer.weigh(loss, 0 if silent else 4).backward()
    kept = batch.chunk(world.size)[: max(1, world.size - 1)]
    square_loss(reference, torch.cat(kept)).backward()
    assert_same_gradients(model, reference)


def test_fixed_weights(world: World) -> None:
    model = mlp()
    reference = twin(model)
    weights = [float(rank + 1) for rank in range(world.size)]
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), weight=weights[world.rank])
    for batch in batches(world, steps=2):
        model.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        parts = [w * square_loss(reference, rows) for w, rows in zip(weights, batch.chunk(world.size), strict=True)]
        (torch.stack(parts).sum() / sum(weights)).backward()
        assert_same_gradients(model, reference)


def test_large_token_counts_survive_half_precision(world: World) -> None:
    """bf16(257) is 256 and fp16(70000) is inf: the counts must not travel in the gradients' dtype."""
    for dtype, count in ((torch.bfloat16, 257), (torch.float16, 70000)):
        parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.1))
        optimizer.weigh((parameter * 2.0**-10).sum(), count).backward()
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 2.0**-10), rtol=1e-2, atol=0)


def test_weighing_on_some_ranks_only_is_an_error_on_all(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot disagree with itself")
    model = mlp()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    (batch,) = batches(world, steps=1)
    loss = square_loss(model, mine(world, batch))
    with pytest.raises(hvd.HvdkitError, match="weigh"):
        (loss if world.rank == 0 else optimizer.weigh(loss, 4)).backward()


def test_weighing_some_backwards_of_a_step_only(world: World) -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), backward_passes_per_step=2)
    first, second = batches(world, steps=2)
    square_loss(model, mine(world, first)).backward()
    with pytest.raises(hvd.HvdkitError, match="in every backward"):
        optimizer.weigh(square_loss(model, mine(world, second)), 4).backward()


@pytest.mark.parametrize("how", ["passes", "no_sync", "only no_sync", "closure"])
def test_counts_add_up_over_accumulation(world: World, how: str) -> None:
    """Three micro-batches of 1 + rank, 2 and 3 rows per rank, with tiny buckets that are sent early."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        backward_passes_per_step=3 if how == "passes" else 1,
        bucket_bytes=100,
    )
    plain = torch.optim.AdamW(reference.parameters(), lr=0.01)
    for batch in batches(world, steps=3, rows=6 + world.size):
        parts = [rows[: 6 + rank].split([1 + rank, 2, 3]) for rank, rows in enumerate(batch.chunk(world.size))]

        def accumulate(micro: Any = parts[world.rank]) -> torch.Tensor:
            optimizer.zero_grad()
            losses = []
            for number, rows in enumerate(micro):
                losses.append(optimizer.weigh(square_loss(model, rows), len(rows)))
                if how == "only no_sync" or (how in ("no_sync", "closure") and number < 2):
                    with optimizer.no_sync():
                        losses[-1].backward()
                else:
                    losses[-1].backward()
            return torch.stack(losses).sum()

        plain.zero_grad()
        wanted = square_loss(reference, torch.cat([rows for micro in parts for rows in micro]))
        wanted.backward()
        if how == "closure":  # the loss is averaged over the same items as the gradients
            torch.testing.assert_close(optimizer.step(accumulate), wanted)
        else:
            accumulate()
            optimizer.synchronize()
            assert_same_gradients(model, reference)
            optimizer.step()
        plain.step()
    assert_same(model, reference, tolerance=1e-9)


@pytest.mark.parametrize("how", ["counts", "fixed"])
def test_weight_zero_on_all_ranks(world: World, how: str) -> None:
    """Nobody has anything to say: no gradient, so that no optimizer moves; the step after it is as usual."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.AdamW(model.parameters(), lr=0.1), weight=0.0 if how == "fixed" else None
    )
    first, second = batches(world, steps=2)
    loss = square_loss(model, mine(world, first))
    (optimizer.weigh(loss, 0) if how == "counts" else loss).backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    assert_same(model, reference, tolerance=0)
    if how == "counts":
        optimizer.zero_grad()
        optimizer.weigh(square_loss(model, mine(world, second)), 4).backward()
        square_loss(reference, second).backward()
        assert_same_gradients(model, reference)


@pytest.mark.parametrize("count", [-1, float("nan"), float("inf"), -0.5])
def test_bad_counts(world: World, count: float) -> None:
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(mlp().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="is not a weight"):
        optimizer.weigh(torch.zeros(()), count)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_bad_fixed_weights(world: World, weight: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        hvd.DistributedOptimizer(torch.optim.SGD(mlp().parameters(), lr=0.1), weight=weight)
    with pytest.raises(ValueError, match="needs op=Average"):
        hvd.DistributedOptimizer(torch.optim.SGD(mlp().parameters(), lr=0.1), weight=1.0, op=hvd.Sum)


def test_capability_times_count(world: World) -> None:
    """Both kinds of weight at once multiply; compression leaves them alone."""
    model = mlp(torch.float32)
    reference = twin(model)
    capability = [float(rank + 1) for rank in range(world.size)]
    counts = [3 + 2 * rank for rank in range(world.size)]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), compression=hvd.Compression.fp16, weight=capability[world.rank]
    )
    for batch in batches(world, steps=2, dtype=torch.float32):
        optimizer.zero_grad()
        reference.zero_grad()
        optimizer.weigh(square_loss(model, mine(world, batch)), 1000 * counts[world.rank]).backward()
        weights = [c * n for c, n in zip(capability, counts, strict=True)]
        parts = [w * square_loss(reference, rows) for w, rows in zip(weights, batch.chunk(world.size), strict=True)]
        (torch.stack(parts).sum() / sum(weights)).backward()
        assert_same_gradients(model, reference, tolerance=4e-3)


def test_weights_within_a_process_set(world: World) -> None:
    if world.size < 2:
        pytest.skip("needs 2 ranks to leave one out, or to have two in a set")
    members = [0, 2] if world.size > 2 else [1]
    chosen = hvd.add_process_set(members)
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), process_set=chosen)
    (batch,) = batches(world, steps=1)
    optimizer.weigh(square_loss(model, mine(world, batch)), world.rank + 1).backward()
    rows = batch.chunk(world.size)
    if world.rank in members:
        parts = [(rank + 1) * square_loss(reference, rows[rank]) for rank in members]
        (torch.stack(parts).sum() / sum(rank + 1 for rank in members)).backward()
        assert_same_gradients(model, reference)
    hvd.barrier()
    assert hvd.remove_process_set(chosen)


def test_one_sparse_gradient_weighed_by_tokens(world: World) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(9, 4, sparse=True).double()
    reference = twin(table)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(table.parameters(), lr=0.1))
    for step in range(3):
        ids = [torch.arange(rank + step + 1) % 9 for rank in range(world.size)]
        optimizer.zero_grad()
        reference.zero_grad()
        optimizer.weigh(table(ids[world.rank]).pow(2).mean(), len(ids[world.rank])).backward()
        reference(torch.cat(ids)).pow(2).mean().backward()
        assert_same_gradients(table, reference)
