"""The parts that the built-in models share: attention, feed-forward, rotary positions, initial weights."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hvdkit.models.config import ModelConfig


class Attention(nn.Module):
    """Multi-head self-attention over (b, t, width); causal for gpt, over all positions for bert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.causal = config.architecture == "gpt"
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.rotary = Rotary(config.width // config.heads, config.context) if config.positions == "rope" else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`mask`, if given, is (b, 1, 1, t) bool with True where a position may be looked at."""
        b, t, width = x.shape
        query, key, value = self.qkv(x).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(b, t, width))
        return out


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.width)
        self.activation = make_activation(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.activation(self.up(x)))
        return y


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): each pair of channels of (b, heads, t, d) turns by position x frequency."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.cos: torch.Tensor
        self.sin: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[-2]
        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def make_activation(config: ModelConfig) -> nn.Module:
    """The GELU that the configuration asks for."""
    return nn.GELU(approximate="tanh" if config.activation == "gelu-tanh" else "none")


def run_layers(
    layers: Iterable[Callable[..., torch.Tensor]],
    x: torch.Tensor,
    *arguments: torch.Tensor | None,
    save_memory: bool,
) -> torch.Tensor:
    """`x` through all `layers`; with `save_memory` while gradients are wanted, their inside is computed anew there."""
    for layer in layers:
        if save_memory and torch.is_grad_enabled():
            x = checkpoint(layer, x, *arguments, use_reentrant=False)
        else:
            x = layer(x, *arguments)
    return x


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights of deviation `std`, zero biases, as GPT-2 and BERT begin; norms keep ones and zeros."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
