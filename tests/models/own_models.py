"""Models as users write them, named `tests.models.own_models:FUNCTION`."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class TiedPair(nn.Module):
    """Embedding and head that share one weight, and a buffer that belongs to the state."""

    def __init__(self, vocab_size: int, output: str = "tensor") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 8)
        self.head = nn.Linear(8, vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.output = output

    def forward(self, tokens: torch.Tensor) -> Any:
        logits = self.head(self.embedding(tokens) * self.scale)
        return {
            "tensor": logits,
            "dict": {"loss": None, "logits": logits},
            "tuple": (logits, None),
            "object": SimpleNamespace(logits=logits),
            "last only": logits[:, -1],
            "nothing": None,
        }[self.output]


def tied_pair(vocab_size: int, context: int) -> nn.Module:
    return TiedPair(vocab_size)


def masked_pair(vocab_size: int, context: int) -> nn.Module:
    model = TiedPair(vocab_size, "dict")
    model.objective = "masked"
    return model


def tuple_pair(vocab_size: int, context: int) -> nn.Module:
    return TiedPair(vocab_size, "tuple")


def object_pair(vocab_size: int, context: int) -> nn.Module:
    return TiedPair(vocab_size, "object")


def last_only(vocab_size: int, context: int) -> nn.Module:
    return TiedPair(vocab_size, "last only")


def returns_nothing(vocab_size: int, context: int) -> nn.Module:
    return TiedPair(vocab_size, "nothing")


def no_module(vocab_size: int, context: int) -> str:
    return "gpt"


def other_arguments(width: int) -> nn.Module:
    return TiedPair(width)
