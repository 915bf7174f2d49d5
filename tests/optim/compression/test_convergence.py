"""Training with each kind of compression ends near training without, on a problem small enough for a test."""

from typing import Any

import pytest
import torch
from torch import nn

from hvdkit.optim.compression import BucketCompressor, Int8, PowerSGD, TopK
from hvdkit.runtime import World
from tests.optim.compression.counting import collectives_of
from tests.optim.compression.problems import assert_same_bits

STEPS = 150


def rows(seed: int) -> torch.Tensor:
    return torch.randn(64, 20, generator=torch.Generator().manual_seed(seed))


def train(world: World, compressor: BucketCompressor | None) -> tuple[float, nn.Module]:
    """Loss on held-out rows after STEPS of SGD with momentum; every rank has batches of its own."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    collectives: Any = collectives_of("naive", world)
    parameters = list(model.parameters())
    state = compressor.for_bucket([p.shape for p in parameters], torch.float32, "cpu") if compressor else None
    for step in range(STEPS):
        batch = rows(1000 * step + world.rank)
        loss = nn.functional.mse_loss(model(batch), teacher(batch).detach())
        optimizer.zero_grad()
        loss.backward()
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]) / world.size
        if state is None:
            collectives.all_reduce_async_(flat, "plain").wait()
        else:
            state.sum_(flat, "compressed", collectives)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
    with torch.no_grad():
        held_out = rows(-1)
        return float(nn.functional.mse_loss(model(held_out).float(), teacher(held_out))), model


@pytest.mark.parametrize(
    "compressor, factor", [(Int8(), 1.05), (PowerSGD(rank=4), 1.5), (TopK(ratio=0.1), 2.0)], ids=str
)
def test_reaches_the_loss_of_uncompressed(world: World, compressor: BucketCompressor, factor: float) -> None:
    plain, _ = train(world, None)
    compressed, model = train(world, compressor)
    assert compressed < factor * plain, f"{compressed} after {STEPS} steps, {plain} without compression"
    assert_same_bits(world, torch.cat([p.detach().flatten() for p in model.parameters()]))
