"""A model whose loss is NaN or infinite at given steps and ranks, as `--model tests.train.bad_model:bad` names it."""

import os

import torch
from torch import nn

from hvdkit.runtime import require_world


class Bad(nn.Module):
    """Its forward passes in training are counted; those in HVDKIT_TEST_BAD (`pass@rank,...`) give NaN."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, vocab_size)
        self.passes = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.hidden(self.embedding(tokens))))
        if self.training:
            self.passes += 1
            if f"{self.passes}@{require_world().rank}" in os.environ.get("HVDKIT_TEST_BAD", "").split(","):
                logits = logits * float("nan")
        return logits


def bad(vocab_size: int, context: int) -> nn.Module:
    return Bad(vocab_size)
