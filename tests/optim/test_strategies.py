"""Every algorithm, at the end of backward and while it runs, gives the gradients of one process."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hvdkit as hvd
from hvdkit.collectives import STRATEGIES, why_no_direct
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, square_loss, twin


class Uneven(nn.Module):
    """Large and small parameters (reduced in place, and packed), one of them unused."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(6, 9000)
        self.narrow = nn.Linear(9000, 4)
        self.norm = nn.LayerNorm(4)
        self.unused = nn.Linear(300, 300)
        self.to(dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.norm(self.narrow(torch.tanh(self.wide(rows))))


@pytest.fixture(params=[name for name in STRATEGIES if name not in ("shared_memory", "hierarchical")] + ["node"])
def strategy(world: World, request: pytest.FixtureRequest) -> str:
    """Every algorithm that is valid here."""
    if request.param not in ("auto", "horovod") and why_no_direct(world):
        pytest.skip("hvdkit's own algorithms need MPI")
    if request.param != "node":
        return request.param
    return "shared_memory" if world.local_size == world.size else "hierarchical"


@pytest.mark.parametrize("overlap", [False, True], ids=["at the end", "meanwhile"])
def test_gradients_of_one_process(world: World, strategy: str, overlap: bool) -> None:
    model = Uneven()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), strategy=strategy, overlap=overlap
    )
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for batch in batches(world, steps=3):
        optimizer.zero_grad()
        plain.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
        optimizer.step()
        plain.step()
    assert_same(model, reference)


@pytest.mark.parametrize("overlap", [False, True], ids=["at the end", "meanwhile"])
def test_weighed_by_items(world: World, strategy: str, overlap: bool) -> None:
    """Rank r has r rows: the first none, and runs no backward."""
    model = Uneven()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), strategy=strategy, overlap=overlap
    )
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        rows = [torch.randn(rank + (world.size == 1), 6, generator=generator).double() for rank in range(world.size)]
        optimizer.zero_grad()
        plain.zero_grad()
        if len(rows[world.rank]):
            optimizer.weigh(square_loss(model, rows[world.rank]), len(rows[world.rank])).backward()
        square_loss(reference, torch.cat(rows)).backward()
        optimizer.step()
        plain.step()
        assert_same(model, reference)


class Twice(nn.Module):
    """A layer used in two segments of reentrant checkpointing: its gradient comes twice, the second time or not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared = nn.Linear(6, 200).double(), nn.Linear(200, 200).double()

    def forward(self, rows: torch.Tensor, times: int) -> torch.Tensor:
        rows = self.first(rows)
        for _ in range(times):
            rows = torch.tanh(checkpoint(self.shared, rows, use_reentrant=True))
        return rows


def test_gradients_that_come_again_after_their_bucket_left(world: World, strategy: str) -> None:
    model = Twice()
    reference = twin(model)
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), strategy=strategy, overlap=True)
    for step, batch in enumerate(batches(world, steps=4)):
        times = [1 if step == 0 else 1 + (rank + step) % 3 for rank in range(world.size)]
        model.zero_grad()
        reference.zero_grad()
        model(mine(world, batch), times[world.rank]).pow(2).mean().backward()
        parts = [reference(rows, n).pow(2).mean() for rows, n in zip(batch.chunk(world.size), times, strict=True)]
        torch.stack(parts).mean().backward()
        assert_same_gradients(model, reference)


@pytest.mark.parametrize(
    ("op", "dtype"), list(itertools.product(["Sum", "Min", "Max", "Average"], [torch.float32, torch.bfloat16]))
)
def test_operations_in_place(world: World, strategy: str, op: str, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(200_000, dtype=dtype))
    hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.1), op=getattr(hvd, op), strategy=strategy)
    parameter.grad = None
    (parameter.sum() * float(world.rank + 1)).backward()
    ranks = torch.arange(1, world.size + 1, dtype=torch.float64)
    wanted = {"Sum": ranks.sum(), "Min": ranks.min(), "Max": ranks.max(), "Average": ranks.mean()}[op]
    assert parameter.grad is not None
    torch.testing.assert_close(parameter.grad, torch.full_like(parameter, float(wanted)), rtol=1e-6, atol=0)


def test_large_gradients_are_reduced_where_they_are(world: World) -> None:
    """No copy of a large gradient is kept: what autograd made is what the optimizer gets."""
    if why_no_direct(world) or world.size == 1:
        pytest.skip("needs hvdkit's own algorithms and 2 ranks")
    model = Uneven()
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in batches(world, steps=2):
        model.zero_grad()
        places: list[int] = []
        handle = model.wide.weight.register_post_accumulate_grad_hook(
            lambda p, seen=places: seen.append(p.grad.data_ptr())
        )
        square_loss(model, mine(world, batch)).backward()
        handle.remove()
        assert model.wide.weight.grad is not None
        assert places == [model.wide.weight.grad.data_ptr()]


@pytest.mark.parametrize("strategy", ["best", "nccl"])
def test_unknown_strategy(world: World, strategy: str) -> None:
    with pytest.raises(ValueError, match="is not one of horovod, mpi, ring, tree, shared_memory, hierarchical, auto"):
        hvd.DistributedOptimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), strategy=strategy)


def test_explicit_strategy_that_cannot_be_had(world: World) -> None:
    adam = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="cannot be had: Adasum"):
        hvd.DistributedOptimizer(adam, op=hvd.Adasum, strategy="ring")
    if why_no_direct(world):
        with pytest.raises(ValueError, match="cannot be had: this job was launched with Gloo"):
            hvd.DistributedOptimizer(adam, strategy="ring")
