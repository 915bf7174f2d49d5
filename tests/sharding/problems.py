"""A small model with everything that sharding has to get right, and its oracle: one process on all ranks' rows."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hvdkit.runtime import World
from hvdkit.sharding.optimizer import Sharded

WIDTH = 24


class Layer(nn.Module):
    """A block with matrices, vectors and a parameter of one element."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.gain * self.down(torch.tanh(self.up(self.norm(x))))
        return y


class Model(nn.Module):
    """Embedding, layers, a head tied to the embedding, a buffer that every forward changes, a frozen matrix."""

    def __init__(self, layers: int = 3, width: int = WIDTH, checkpoints: str = "") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(11, width)
        self.layers = nn.ModuleList([Layer(width) for _ in range(layers)])
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(width, width)
        self.frozen.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(1))
        self._checkpoints = checkpoints

    def forward(self, tokens: torch.Tensor, skip: int | None = None) -> torch.Tensor:
        x = self.frozen(self.embedding(tokens))
        for number, layer in enumerate(self.layers):
            if number == skip:
                continue
            is_reentrant = self._checkpoints == "reentrant"
            x = checkpoint(layer, x, use_reentrant=is_reentrant) if self._checkpoints else layer(x)
        logits: torch.Tensor = self.head(x)
        return logits


def make(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Model, Model]:
    """The same model twice: to be sharded, and the oracle."""
    model = Model(**options).to(dtype)
    return model, copy.deepcopy(model)


def tokens_of(world: World, step: int, rows: int = 2) -> torch.Tensor:
    """Global batches of (size * rows, 5) tokens, the same on every rank."""
    return torch.randint(0, 11, (world.size * rows, 5), generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
    """Mean over tokens of the loss of the next one."""
    logits = model(tokens[:, :-1], **more)
    return nn.functional.cross_entropy(logits.reshape(-1, 11), tokens[:, 1:].reshape(-1))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer gets."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_same(optimizer: torch.optim.Optimizer, reference: nn.Module, tolerance: float = 1e-10) -> None:
    """All whole parameters equal the oracle's, on every rank."""
    assert isinstance(optimizer, Sharded)
    for name, wanted in reference.named_parameters():
        torch.testing.assert_close(
            optimizer.full_parameter(name), wanted.detach(), rtol=tolerance, atol=tolerance,
            msg=lambda text, n=name: f"{n}: {text}",
        )  # fmt: skip
