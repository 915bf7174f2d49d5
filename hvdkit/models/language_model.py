"""What the training loop expects of a model, and the wrapper that gives it to someone's own module."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdkit.errors import ConfigError
from hvdkit.models.state import State, write_built


class LanguageModel(nn.Module, ABC):
    """A module from token ids (b, t) int64, t <= context, to logits (b, t, vocab_size) of the parameters' dtype."""

    def __init__(self, name: str, objective: str, vocab_size: int, context: int) -> None:
        super().__init__()
        if objective not in ("causal", "masked"):
            raise ConfigError(f"{name}: objective={objective!r} must be 'causal' or 'masked'")
        self.name = name
        self.objective = objective
        self.vocab_size = vocab_size
        self.context = context

    @abstractmethod
    def forward(self, tokens: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def write(self, folder: Path, state: State | None = None) -> None:
        """Write weights and config.json into the existing `folder`, so that `load_model` reads them back.

        The weights are those of `state`, such as `copied_state` gives, where there is one, else the module's own.
        """


class OwnModel(LanguageModel):
    """Someone's own module behind the common interface; `function` is the `package.module:function` it came from."""

    def __init__(self, inner: nn.Module, function: str, objective: str, vocab_size: int, context: int) -> None:
        super().__init__(function, objective, vocab_size, context)
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = _logits(self.inner(tokens))
        if logits is None or logits.ndim != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] < self.vocab_size:
            got = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
            raise ConfigError(
                f"{self.name}: the model must map tokens {tuple(tokens.shape)} to logits "
                f"{(*tokens.shape, self.vocab_size)}; it gave {got}"
            )
        return logits

    def write(self, folder: Path, state: State | None = None) -> None:
        entry = {"function": self.name, "objective": self.objective}
        write_built(
            folder, state or self.state_dict(), {**entry, "vocab_size": self.vocab_size, "context": self.context}
        )


def count_parameters(model: nn.Module) -> int:
    """Trainable and frozen parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _logits(output: Any) -> torch.Tensor | None:
    """The logits in what a model returned: a tensor, an object or dict with `logits`, or a tuple that begins so."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple) and output:
        found = output[0]
    elif isinstance(output, dict):
        found = output.get("logits")
    else:
        found = getattr(output, "logits", None)
    return found if isinstance(found, torch.Tensor) else None
