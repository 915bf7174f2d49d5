"""Several optimizers over one backward: none waits before all have sent, so ranks may meet them in any order."""

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin


class Heads(nn.Module):
    """Two heads whose gradients come in the order of `first`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

    def forward(self, x: torch.Tensor, use: str = "lr") -> torch.Tensor:
        layers = {"l": self.left, "r": self.right}
        for name in use:
            x = torch.tanh(layers[name](x))
        return x


def loss(model: nn.Module, rows: torch.Tensor, use: str) -> torch.Tensor:
    return model(rows, use).pow(2).sum(dim=-1).mean()


@pytest.mark.parametrize("bucket_bytes", [0, 2**20])
def test_ranks_meet_them_in_different_orders(world: World, bucket_bytes: int) -> None:
    model, reference = Heads(), Heads()
    left = hvd.DistributedOptimizer(torch.optim.SGD(model.left.parameters(), lr=0.1), bucket_bytes=bucket_bytes)
    right = hvd.DistributedOptimizer(torch.optim.Adam(model.right.parameters(), lr=0.1), bucket_bytes=bucket_bytes)
    for step, batch in enumerate(batches(world, steps=5)):
        uses = ["lr" if (rank + step) % 2 or step == 0 else "rl" for rank in range(world.size)]
        left.zero_grad()
        right.zero_grad()
        reference.zero_grad()
        loss(model, mine(world, batch), uses[world.rank]).backward()
        parts = [loss(reference, rows, use) for rows, use in zip(batch.chunk(world.size), uses, strict=True)]
        torch.stack(parts).mean().backward()
        assert_same_gradients(model, reference)
        left.step()
        right.step()
        reference.load_state_dict(model.state_dict())


def test_one_of_them_gets_no_gradient_on_some_ranks(world: World) -> None:
    model, reference = Heads(), Heads()
    left = hvd.DistributedOptimizer(torch.optim.SGD(model.left.parameters(), lr=0.1))
    right = hvd.DistributedOptimizer(torch.optim.SGD(model.right.parameters(), lr=0.1))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step, batch in enumerate(batches(world, steps=5)):
        uses = ["lr" if (rank + step) % 2 else "rlr"[step % 3] for rank in range(world.size)]
        for optimizer in (left, right, plain):
            optimizer.zero_grad()
        loss(model, mine(world, batch), "lr" if step == 0 else uses[world.rank]).backward()
        left.step()
        right.step()
        if step == 0:
            uses = ["lr"] * world.size
        parts = [loss(reference, rows, use) for rows, use in zip(batch.chunk(world.size), uses, strict=True)]
        torch.stack(parts).mean().backward()
        plain.step()
        assert_same(model, reference)


def test_two_over_the_same_parameters(world: World) -> None:
    """The one wrapped last aggregates; the other steps on the same gradients."""
    model = mlp()
    reference = twin(model)
    first = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    second = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.2))
    plain = torch.optim.SGD(reference.parameters(), lr=0.3)
    for batch in batches(world, steps=2):
        second.zero_grad()
        plain.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        second.step()
        first.step()
        plain.step()
    assert_same(model, reference)
    assert second.statistics.rounds == 2 and first.statistics.bytes_sent == 0


def test_sparse_and_dense(world: World) -> None:
    torch.manual_seed(0)
    table, layer = nn.Embedding(9, 4, sparse=True).double(), nn.Linear(4, 2).double()
    model = nn.ModuleList([table, layer])
    reference = twin(model)
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.SparseAdam(table.parameters(), lr=0.1)),
        hvd.DistributedOptimizer(torch.optim.AdamW(layer.parameters(), lr=0.1)),
    ]
    plain = [
        torch.optim.SparseAdam(reference[0].parameters(), lr=0.1),
        torch.optim.AdamW(reference[1].parameters(), lr=0.1),
    ]
    for step in range(3):
        for optimizer in optimizers + plain:
            optimizer.zero_grad()
        ids = [torch.tensor([rank, step, 8]) for rank in range(world.size)]
        layer(table(ids[world.rank])).pow(2).sum().backward()
        parts = [reference[1](reference[0](rows)).pow(2).sum() for rows in ids]
        torch.stack(parts).mean().backward()
        for optimizer in optimizers + plain:
            optimizer.step()
    assert_same(model, reference)


def test_ranks_meet_sparse_ones_in_different_orders(world: World) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(9, 4, sparse=True).double() for _ in range(2)])
    reference = twin(model)
    optimizers = [hvd.DistributedOptimizer(torch.optim.SGD(table.parameters(), lr=0.1)) for table in model]
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)

    def loss_of(tables: nn.Module, rank: int, step: int) -> torch.Tensor:
        ids = torch.tensor([rank, step, 8])
        rows = [tables[number](ids) for number in ((0, 1) if (rank + step) % 2 or step == 0 else (1, 0))]
        return (rows[0] * rows[1]).sum()

    for step in range(4):
        for optimizer in (*optimizers, plain):
            optimizer.zero_grad()
        loss_of(model, world.rank, step).backward()
        torch.stack([loss_of(reference, rank, step) for rank in range(world.size)]).mean().backward()
        for optimizer in (*optimizers, plain):
            optimizer.step()
    assert_same(model, reference)
