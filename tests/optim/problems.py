"""Small training problems whose oracle is one process on the union of all ranks' batches."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from hvdkit.runtime import World

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def mlp(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """The same small network on every rank."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(world: World, steps: int, rows: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """`steps` global batches of (size * rows, 6), the same on every rank."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(world.size * rows, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(steps)]


def mine(world: World, batch: torch.Tensor) -> torch.Tensor:
    """This rank's equal part of a global batch."""
    return batch.chunk(world.size)[world.rank]


def square_loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """A mean over rows."""
    return model(rows).pow(2).sum(dim=-1).mean()


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` for the one-process reference."""
    return copy.deepcopy(model)


def assert_same(model: nn.Module, reference: nn.Module, tolerance: float = 1e-10) -> None:
    """Parameters equal to `tolerance`, named where not."""
    for (name, got), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_gradients(model: nn.Module, reference: nn.Module, tolerance: float = 1e-10) -> None:
    """Gradients equal to `tolerance`; None only where the reference has None."""
    for (name, got), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (got.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None:
            assert got.grad is not None
            torch.testing.assert_close(got.grad.to_dense(), wanted.grad.to_dense(), rtol=tolerance, atol=tolerance)
