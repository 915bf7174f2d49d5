"""Makes a model from what `--model` names."""

import difflib
from dataclasses import replace
from pathlib import Path

from hvdkit.data.named_function import names_function
from hvdkit.data.tokenizer import Tokenizer
from hvdkit.errors import ConfigError
from hvdkit.models.construct import from_config, from_function
from hvdkit.models.folder import load_model
from hvdkit.models.language_model import LanguageModel
from hvdkit.models.presets import PRESETS

HUGGING_FACE = "hf:"


def build_model(name: str, vocab_size: int, context: int, tokenizer: Tokenizer | None = None) -> LanguageModel:
    """A new model with random weights from torch's generator.

    Args:
        name: a name of `PRESETS`, `hf:TYPE` (with `,option=value` after it), a model folder (its weights are
            loaded), or `package.module:function`, called as `function(vocab_size=..., context=...)`.
        vocab_size: token ids that it must take.
        context: length of its sequences.
        tokenizer: where given, a Hugging Face configuration is told its ids for end and padding.

    Raises ConfigError for a name that it does not know, with the closest one.
    """
    if name in PRESETS:
        return from_config(replace(PRESETS[name], vocab_size=vocab_size, context=context), name)
    if name.startswith(HUGGING_FACE):
        from hvdkit.models.hugging_face import build_hugging_face

        return build_hugging_face(name.removeprefix(HUGGING_FACE), vocab_size, context, tokenizer)
    if names_function(name):
        return from_function(name, "causal", vocab_size, context)
    if name and Path(name).is_dir():
        model = load_model(Path(name))
        if model.vocab_size < vocab_size or model.context < context:
            raise ConfigError(
                f"the model in {name} takes {model.vocab_size} token ids and sequences of {model.context}; this run "
                f"has {vocab_size} and {context}: use its own tokenizer (--init-from {name}) and a context that fits"
            )
        return model
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {close[0]}" if close else ""
    raise ConfigError(
        f"--model {name} is not known{hint}; use one of {', '.join(PRESETS)}, hf:TYPE, a model folder, or "
        "package.module:function"
    )
