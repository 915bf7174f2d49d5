"""The built-in models by name. Vocabulary and context are replaced by those of the run."""

from hvdkit.models.config import ModelConfig


def _gpt(layers: int, width: int, heads: int, context: int, vocab_size: int = 259) -> ModelConfig:
    return ModelConfig("gpt", layers, width, heads, vocab_size, context, activation="gelu-tanh")


def _bert(layers: int, width: int, heads: int, context: int, vocab_size: int = 259) -> ModelConfig:
    return ModelConfig("bert", layers, width, heads, vocab_size, context, norm_eps=1e-12)


PRESETS: dict[str, ModelConfig] = {
    "gpt-toy": _gpt(2, 32, 2, 32),
    "gpt-mini": _gpt(4, 128, 4, 128),
    "gpt-4m": _gpt(5, 256, 4, 128),
    "gpt-33m": _gpt(8, 576, 9, 256),
    "gpt2": _gpt(12, 768, 12, 1024, 50257),
    "gpt2-medium": _gpt(24, 1024, 16, 1024, 50257),
    "gpt2-large": _gpt(36, 1280, 20, 1024, 50257),
    "gpt2-xl": _gpt(48, 1600, 25, 1024, 50257),
    "bert-toy": _bert(2, 32, 2, 32),
    "bert-mini": _bert(4, 128, 4, 128),
    "bert-base": _bert(12, 768, 12, 512, 30522),
    "bert-large": _bert(24, 1024, 16, 512, 30522),
}
"""Those named gpt2 or bert, but for mini and toy, have the shapes, and so the parameter counts, of these models."""
