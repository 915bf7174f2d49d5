"""Ranks that do not all do the same: missing gradients, frozen and sparse parameters, uneven steps."""

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin


class Branching(nn.Module):
    """Three branches, of which each forward uses those it is told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(6, 3) for _ in range(3)).double()

    def forward(self, x: torch.Tensor, use: list[int]) -> torch.Tensor:
        return torch.stack([self.branches[i](x).pow(2).sum() for i in use]).sum()


@pytest.mark.parametrize("bucket_bytes", [0, 2**20])
def test_parameters_without_gradient(world: World, bucket_bytes: int) -> None:
    model = Branching()
    optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(model.parameters(), lr=0.1), bucket_bytes=bucket_bytes)
    reference = Branching()
    for step, batch in enumerate(batches(world, steps=4)):
        optimizer.zero_grad()
        reference.zero_grad()
        uses = [[0, 1] if (rank + step) % 2 else [0] for rank in range(world.size)]
        model(mine(world, batch), uses[world.rank]).backward()
        parts = [reference(rows, use) for rows, use in zip(batch.chunk(world.size), uses, strict=True)]
        (torch.stack(parts).sum() / world.size).backward()
        # Branch 2 was used nowhere: its gradient stays None, so that AdamW does not decay it.
        assert_same_gradients(model, reference)
        optimizer.step()
        reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.branches[2].weight, Branching().branches[2].weight)


def test_a_rank_that_ran_no_backward(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step, batch in enumerate(batches(world, steps=4)):
        idle = step % world.size if world.size > 1 else -1
        optimizer.zero_grad()
        plain.zero_grad()
        if world.rank != idle:
            square_loss(model, mine(world, batch)).backward()
        if step % 2:
            optimizer.synchronize()
        optimizer.step()
        parts = [square_loss(reference, rows) for r, rows in enumerate(batch.chunk(world.size)) if r != idle]
        (torch.stack(parts).sum() / world.size).backward()
        plain.step()
    assert_same(model, reference)


def test_freezing_and_unfreezing(world: World) -> None:
    model = mlp()
    reference = twin(model)
    model[0].requires_grad_(False)
    reference[0].requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for step, batch in enumerate(batches(world, steps=5)):
        if step in (2, 4):
            for layers in (model, reference):
                layers[0].requires_grad_(step == 2)
                layers[2].requires_grad_(step != 2)
        for layers in (model, reference):
            layers.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
        optimizer.step()
        reference.load_state_dict(model.state_dict())


@pytest.mark.parametrize("as_dense", [True, False])
def test_sparse_embedding(world: World, as_dense: bool) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(12, 4, sparse=True).double()
    reference = nn.Embedding(12, 4, sparse=True).double()
    reference.load_state_dict(table.state_dict())
    optimizer = hvd.DistributedOptimizer(torch.optim.SparseAdam(table.parameters(), lr=0.1), sparse_as_dense=as_dense)
    plain = torch.optim.SparseAdam(reference.parameters(), lr=0.1)
    for step in range(4):
        ids = [torch.tensor([(3 * rank + step) % 12, step, step]) for rank in range(world.size)]
        optimizer.zero_grad()
        plain.zero_grad()
        if step != 2 or world.rank == 0:  # in step 2 only rank 0 has rows
            table(ids[world.rank]).pow(2).sum().backward()
        optimizer.synchronize()
        parts = [reference(rows).pow(2).sum() for rank, rows in enumerate(ids) if step != 2 or rank == 0]
        (torch.stack(parts).sum() / world.size).backward()
        assert_same_gradients(table, reference)
        if as_dense:  # rows that no rank touched are explicit zeros then, as with Horovod
            reference.weight.grad = table.weight.grad.clone() if table.weight.grad is not None else None
        optimizer.step()
        plain.step()
        assert_same(table, reference)


def test_ranks_with_other_parameters_are_told(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot disagree with itself")
    model = nn.Linear(4, 2 if world.rank == 0 else 3)
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(hvd.HvdkitError, match="ranks disagree on the parameters"):
        model(torch.ones(1, 4)).sum().backward()


@pytest.mark.parametrize("first", [0, 1])
def test_join_with_uneven_steps(world: World, first: int) -> None:
    """A joined rank counts as zeros, and `Average` goes on dividing by all ranks, as in Horovod.

    Rank r has r + `first` steps in the first epoch: one rank may have none at all, and so no part in the first
    agreement. In the second epoch it has the most.
    """
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=1.0))
    for steps in ([first + rank for rank in range(world.size)], [*range(world.size, 0, -1)]):
        for step in range(steps[world.rank]):
            optimizer.zero_grad()
            (parameter * float(world.rank + 1)).sum().backward()
            active = [rank + 1 for rank in range(world.size) if steps[rank] > step]
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, sum(active) / world.size))
            optimizer.step()
        assert hvd.join() == steps.index(max(steps))


def test_process_set(world: World) -> None:
    if world.size < 3:
        pytest.skip("needs 3 ranks to leave one out")
    chosen = hvd.add_process_set([0, world.size - 1])
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), process_set=chosen)
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward()
    rows = batch.chunk(world.size)
    included = chosen.included()
    square_loss(reference, torch.cat([rows[0], rows[-1]]) if included else rows[world.rank]).backward()
    assert_same_gradients(model, reference)
    optimizer.step()
    hvd.barrier()
    assert hvd.remove_process_set(chosen)
