"""A GPT: a causal language model with the norm before each part, and the embedding as the head (Radford et al. 2019).

With `gelu-tanh` and learned positions it computes what GPT-2 computes, and has as many parameters.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hvdkit.errors import ConfigError
from hvdkit.models.config import ModelConfig
from hvdkit.models.language_model import LanguageModel
from hvdkit.models.layers import Attention, FeedForward, initialise, run_layers
from hvdkit.models.state import State, write_built


class GPTLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm_feed_forward = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x)))
        y: torch.Tensor = x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        return y


class GPT(LanguageModel):
    """The model of a `ModelConfig` with architecture gpt; weights drawn from torch's generator as GPT-2's are."""

    def __init__(self, config: ModelConfig, name: str = "gpt") -> None:
        super().__init__(name, "causal", config.vocab_size, config.context)
        if config.architecture != "gpt":
            raise ConfigError(f"{name}: architecture={config.architecture!r} is not a GPT's")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        layers = [GPTLayer(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        initialise(self, config.init_std)
        # What each layer adds is scaled so that the sum over the depth keeps its size.
        for layer in layers:
            for residual in (layer.attention.out, layer.feed_forward.down):
                nn.init.normal_(residual.weight, std=config.init_std / math.sqrt(2 * config.layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (b, t, vocab_size): at each position those of the next token."""
        t = tokens.shape[1]
        if t > self.context:
            raise ValueError(f"a sequence of {t} tokens is longer than this model's context of {self.context}")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[:t]
        x = run_layers(self.layers, self.dropout(x), save_memory=self.config.checkpoint_activations)
        return F.linear(self.norm(x), self.embedding.weight)

    def write(self, folder: Path, state: State | None = None) -> None:
        write_built(folder, state or self.state_dict(), {"name": self.name, **self.config.to_dict()})
