"""Makes a module from a description: a built-in model's shape, or the name of someone's own function."""

from typing import Any

from torch import nn

from hvdkit.data.named_function import import_function
from hvdkit.errors import ConfigError
from hvdkit.models.bert import BERT
from hvdkit.models.config import ModelConfig
from hvdkit.models.gpt import GPT
from hvdkit.models.language_model import LanguageModel, OwnModel


def from_config(config: ModelConfig, name: str) -> LanguageModel:
    """The built-in model of shape `config`."""
    return GPT(config, name) if config.architecture == "gpt" else BERT(config, name)


def from_function(name: str, objective: str, vocab_size: int, context: int) -> LanguageModel:
    """The model that one's own function returns; `objective` unless the module has an attribute of that name."""
    function = import_function(name, ConfigError)
    try:
        inner: Any = function(vocab_size=vocab_size, context=context)
    except TypeError as error:
        raise ConfigError(f"{name}: it is called with vocab_size and context, and failed: {error}") from error
    if not isinstance(inner, nn.Module):
        raise ConfigError(f"{name} returned a {type(inner).__name__}; it must return a torch.nn.Module")
    return OwnModel(inner, name, str(getattr(inner, "objective", objective)), vocab_size, context)
