"""Hugging Face's models behind the common interface, through the extra `hf`; the network is never asked."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdkit.data.tokenizer import Tokenizer
from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.models.language_model import LanguageModel
from hvdkit.models.state import State

_LENGTH_OPTIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "max_seq_len")
_NO_LIMIT = 2**20
_SHOWN = 5


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

    def write(self, folder: Path, state: State | None = None) -> None:
        """Write what `from_pretrained` reads."""
        prefix = "inner."
        inner = state and {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        self.inner.save_pretrained(folder, state_dict=inner)


def build_hugging_face(
    text: str, vocab_size: int, context: int, tokenizer: Tokenizer | None = None
) -> HuggingFaceModel:
    """`TYPE` or `TYPE,option=value,...` of a transformers configuration, with random weights.

    Vocabulary, context and special tokens are those of the run unless options say otherwise. Raises ConfigError,
    also where the options leave too little of vocabulary or context.
    """
    transformers = _transformers()
    kind, *pairs = text.split(",")
    options: dict[str, Any] = dict(_option(pair, text) for pair in pairs)
    try:
        default = transformers.AutoConfig.for_model(kind)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--model hf:{kind}: transformers has no model type {kind!r}") from error
    known = {*default.to_dict(), *default.attribute_map}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"--model hf:{text}: a {kind} configuration has no {', '.join(unknown)}")
    length = _length_option(default)
    options = {"vocab_size": vocab_size, **_special_ids(default, vocab_size, tokenizer), **options}
    try:
        if length is not None and not options.keys() & set(_LENGTH_OPTIONS):
            pad_id = options.get("pad_token_id", getattr(default, "pad_token_id", None)) or 0
            with torch.device("meta"):  # costs nothing and draws no random numbers
                _, empty = _make(transformers, kind, {**options, length: context + pad_id + 1})
            options[length] = context + _position_offset(empty)
        objective, inner = _make(transformers, kind, options)
    except ConfigError:
        raise
    except Exception as error:  # each configuration checks itself in its own way, or fails in its layers
        raise ConfigError(f"--model hf:{text}: {' '.join(str(error).split())}") from error
    model = _wrap(inner, f"hf:{text}", objective)
    if model.vocab_size < vocab_size or model.context < context:
        raise ConfigError(
            f"--model hf:{text}: takes {model.vocab_size} token ids and sequences of {model.context}; this run has "
            f"{vocab_size} and {context}"
        )
    return model


def load_hugging_face(folder: Path) -> HuggingFaceModel:
    """The model in a local Hugging Face folder, in the dtype it was saved in.

    Raises CheckpointError if transformers cannot load it or weights are missing in it.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        objective, factory = _head(transformers, config)
        inner, report = factory.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype="auto", output_loading_info=True
        )
    except Exception as error:  # of transformers, safetensors, or the configuration's own checks
        raise CheckpointError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CheckpointError(
            f"{folder}: weights of a {type(inner).__name__} are missing: {', '.join(missing[:_SHOWN])}{more}"
        )
    return _wrap(inner, str(folder), objective)


def _make(transformers: Any, kind: str, options: dict[str, Any]) -> tuple[str, Any]:
    config = transformers.AutoConfig.for_model(kind, **options)
    objective, factory = _head(transformers, config)
    return objective, factory.from_config(config)


def _wrap(inner: Any, name: str, objective: str) -> HuggingFaceModel:
    config = inner.config.get_text_config()
    length = _length_option(config)
    context = _NO_LIMIT if length is None else getattr(config, length) - _position_offset(inner)
    return HuggingFaceModel(inner, name, objective, int(config.vocab_size), int(context))


def _head(transformers: Any, config: Any) -> tuple[str, Any]:
    """Objective and factory: masked for encoders (BERT and its kin, whose causal heads are decoders made of
    encoders) unless the configuration says that this one is a decoder; else causal."""
    causal, masked = transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM
    is_decoder = getattr(config, "is_decoder", False) or "CausalLM" in " ".join(config.architectures or [])
    if type(config) in masked._model_mapping and not is_decoder and not config.is_encoder_decoder:
        return "masked", masked
    if type(config) in causal._model_mapping:
        return "causal", causal
    raise ConfigError(f"hf:{config.model_type}: transformers has neither a causal nor a masked language model of it")


def _special_ids(default: Any, vocab_size: int, tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """What replaces the special ids of the type's own vocabulary, where they would be other tokens or none.

    Padding matters most: its embedding is not trained, and RoBERTa gives it no position.
    """
    names = [name for name in ("bos_token_id", "eos_token_id", "pad_token_id") if hasattr(default, name)]
    if tokenizer is None:
        return {name: None for name in names if isinstance(i := getattr(default, name), int) and i >= vocab_size}
    pad_id = None if tokenizer.pad_id == tokenizer.eot_id else tokenizer.pad_id
    return {name: pad_id if name == "pad_token_id" else tokenizer.eot_id for name in names}


def _length_option(config: Any) -> str | None:
    return next((name for name in _LENGTH_OPTIONS if isinstance(getattr(config, name, None), int)), None)


def _position_offset(inner: nn.Module) -> int:
    """Positions that can't be used: RoBERTa and its kin count from the padding id + 1."""
    for name, part in inner.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return int(part.padding_idx) + 1
    return 0


def _option(pair: str, text: str) -> tuple[str, Any]:
    import yaml

    name, separator, value = pair.partition("=")
    if not separator:
        raise ConfigError(f"--model hf:{text}: {pair!r} must have the form option=value")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--model hf:{text}: {pair!r} has a value that is not YAML") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"Hugging Face models need the transformers library ({error}): `pip install transformers`"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
