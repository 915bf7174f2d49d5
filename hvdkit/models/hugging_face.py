"""Hugging Face's models behind the common interface, through the extra `hf`; the network is never asked."""

from pathlib import Path
from typing import Any

import torch

from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.models.language_model import LanguageModel

_LENGTH_OPTIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length")


class HuggingFaceModel(LanguageModel):
    """A transformers model with a language-model head."""

    def __init__(self, inner: Any, name: str, objective: str, vocab_size: int, context: int) -> None:
        super().__init__(name, objective, vocab_size, context)
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (b, t, vocab_size)."""
        # No padding mask: hvdkit fills a short last sample with ids that no target asks for.
        logits: torch.Tensor = self.inner(input_ids=tokens).logits
        return logits

    def write(self, folder: Path) -> None:
        """Write what `from_pretrained` reads."""
        self.inner.save_pretrained(folder, safe_serialization=True)


def build_hugging_face(text: str, vocab_size: int, context: int) -> LanguageModel:
    """`TYPE` or `TYPE,option=value,...` of a transformers configuration, with random weights."""
    transformers = _transformers()
    kind, *pairs = text.split(",")
    options: dict[str, Any] = dict(_option(pair, text) for pair in pairs)
    try:
        config = transformers.AutoConfig.for_model(kind)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--model hf:{kind}: transformers has no model type {kind!r}") from error
    unknown = [name for name in options if not hasattr(config, name)]
    if unknown:
        raise ConfigError(f"--model hf:{text}: a {kind} configuration has no {', '.join(unknown)}")
    for name in _LENGTH_OPTIONS:
        if hasattr(config, name):
            options.setdefault(name, context)
    try:
        config = transformers.AutoConfig.for_model(kind, **{"vocab_size": vocab_size, **options})
        objective, factory = _head(transformers, config)
        inner = factory.from_config(config)
    except ValueError as error:
        raise ConfigError(f"--model hf:{text}: {error}") from error
    return HuggingFaceModel(inner, f"hf:{text}", objective, vocab_size, context)


def load_hugging_face(folder: Path) -> LanguageModel:
    """The model in a local Hugging Face folder."""
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        objective, factory = _head(transformers, config)
        inner = factory.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    context = next((getattr(config, name) for name in _LENGTH_OPTIONS if hasattr(config, name)), 2**20)
    return HuggingFaceModel(inner, str(folder), objective, int(config.vocab_size), int(context))


def _head(transformers: Any, config: Any) -> tuple[str, Any]:
    """Objective and factory: by the architecture that the configuration names, else causal unless the type is
    known for masking first (BERT and its kin, whose causal heads are decoders made of encoders)."""
    causal, masked = transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM
    named = " ".join(config.architectures or [])
    can_mask = type(config) in masked._model_mapping
    if can_mask and ("MaskedLM" in named or (not named and getattr(config, "is_decoder", True) is False)):
        return "masked", masked
    return "causal", causal


def _option(pair: str, text: str) -> tuple[str, Any]:
    import yaml

    name, separator, value = pair.partition("=")
    if not separator:
        raise ConfigError(f"--model hf:{text}: {pair!r} must have the form option=value")
    return name.strip(), yaml.safe_load(value)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError("Hugging Face models need the transformers library: `pip install transformers`") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
