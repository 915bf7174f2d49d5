"""The shape of a built-in model."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from hvdkit.errors import ConfigError
from hvdkit.untrusted import shown

_LARGEST = 2**28
"""Of any size: a matrix of this squared still has fewer bytes than 64 bits can count."""
_CHOICES = {
    "architecture": ("gpt", "bert"),
    "positions": ("learned", "rope"),
    "activation": ("gelu", "gelu-tanh"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a built-in model's parameters and what it computes."""

    architecture: str
    """`gpt` (causal) or `bert` (masked)."""
    layers: int
    width: int
    heads: int
    vocab_size: int = 259
    context: int = 128
    """The longest sequence, in tokens."""
    feed_forward: int = 0
    """Width of the feed-forward part; 0 for 4 x width."""
    positions: str = "learned"
    """`learned`, or `rope` (rotary, Su et al. 2021; gpt only)."""
    activation: str = "gelu"
    """`gelu`, or its approximation `gelu-tanh` that GPT-2 uses."""
    dropout: float = 0.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    segments: int = 2
    """Kinds of segment embeddings (bert only)."""
    checkpoint_activations: bool = False
    """Keep only each layer's input and compute the rest anew in backward: less memory, a third more time."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            self._check(entry.name, entry.type)
        if self.feed_forward == 0:
            object.__setattr__(self, "feed_forward", 4 * self.width)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"model: {name}={getattr(self, name)!r} must be one of {', '.join(choices)}")
        for name in ("layers", "width", "heads", "vocab_size", "context", "feed_forward", "segments"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model: {name}={getattr(self, name)} must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"model: width={self.width} must be a multiple of heads={self.heads}")
        if self.positions == "rope" and (self.architecture != "gpt" or self.width // self.heads % 2):
            raise ConfigError("model: positions='rope' needs architecture gpt and an even width per head")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model: dropout={self.dropout} must lie in [0, 1)")

    def _check(self, name: str, kind: Any) -> None:
        """Saved configurations come from files, and may say anything."""
        value = getattr(self, name)
        if kind is float:
            good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
        else:
            good = type(value) is kind and (kind is not int or value <= _LARGEST)
        if not good:
            raise ConfigError(f"model: {name}={shown(value)} must be of type {kind.__name__}, and at most {_LARGEST}")

    @property
    def objective(self) -> str:
        """What the architecture is trained for: `causal` or `masked`."""
        return "causal" if self.architecture == "gpt" else "masked"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The configuration that `to_dict` described; raises ConfigError for names that it does not know."""
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ConfigError(f"model: unknown {', '.join(unknown)}; was it saved by a newer hvdkit?")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"model: not a usable configuration ({error})") from error
