"""A BERT: encoder, pooler, and a head that predicts masked tokens (Devlin et al. 2018), the norm after each part.

It computes what BERT computes, and has as many parameters.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hvdkit.errors import ConfigError
from hvdkit.models.config import ModelConfig
from hvdkit.models.language_model import LanguageModel
from hvdkit.models.layers import Attention, FeedForward, initialise, make_activation, run_layers
from hvdkit.models.state import State, write_built


class BERTLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + feed-forward(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.norm_attention = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.norm_feed_forward = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.norm_attention(x + self.dropout(self.attention(x, mask)))
        y: torch.Tensor = self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))
        return y


class BERT(LanguageModel):
    """The model of a `ModelConfig` with architecture bert.

    The pooler takes no part in the prediction of masked tokens, so masked training leaves it as it began; it is
    there for what comes after, classification.
    """

    def __init__(self, config: ModelConfig, name: str = "bert") -> None:
        super().__init__(name, "masked", config.vocab_size, config.context)
        if config.architecture != "bert":
            raise ConfigError(f"{name}: architecture={config.architecture!r} is not a BERT's")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.segments = nn.Embedding(config.segments, config.width)
        self.norm_embedding = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(BERTLayer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.width, config.width)
        self.head = nn.Linear(config.width, config.width)
        self.head_activation = make_activation(config)
        self.head_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.init_std)

    def encode(
        self, tokens: torch.Tensor, segments: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states (b, t, width).

        Args:
            tokens: (b, t) int64.
            segments: (b, t) int64, all 0 if not given.
            mask: (b, t) bool, True where a position may be looked at; all of them if not given.
        """
        t = tokens.shape[1]
        if t > self.context:
            raise ValueError(f"a sequence of {t} tokens is longer than this model's context of {self.context}")
        x = self.embedding(tokens) + self.positions.weight[:t]
        x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        visible = None if mask is None else mask[:, None, None, :]
        x = self.dropout(self.norm_embedding(x))
        return run_layers(self.layers, x, visible, save_memory=self.config.checkpoint_activations)

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        """(b, width): a summary of each sequence, from the hidden state of its first token."""
        return torch.tanh(self.pooler(hidden[:, 0]))

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (b, t, vocab_size) of the token at each position."""
        x = self.head_norm(self.head_activation(self.head(hidden)))
        return F.linear(x, self.embedding.weight, self.head_bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (b, t, vocab_size) of the token at each position."""
        return self.predict(self.encode(tokens))

    def write(self, folder: Path, state: State | None = None) -> None:
        write_built(folder, state or self.state_dict(), {"name": self.name, **self.config.to_dict()})
