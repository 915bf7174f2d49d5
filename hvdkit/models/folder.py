"""Model folders: weights in safetensors and a config.json, hvdkit's own or Hugging Face's."""

from pathlib import Path
from typing import Any

from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.files.durable import complete_folder
from hvdkit.models.config import ModelConfig
from hvdkit.models.construct import from_config, from_function
from hvdkit.models.language_model import LanguageModel
from hvdkit.models.state import (
    CONFIG_FILE,
    CONFIG_KEY,
    WEIGHTS_FILE,
    State,
    distinct_tensors,
    load_tensors,
    read_tensors,
)
from hvdkit.untrusted import parse_json

_ROTARY, _ROTARY_FREE = 16, 2**20
"""How many values of rotary positions a parameter allows for, and how many are allowed without."""


def write_model(folder: Path, model: LanguageModel, state: State | None = None) -> None:
    """Write `model` into the existing `folder`, which you are making; with the weights of `state` where given."""
    model.write(folder, state)


def save_model(folder: Path, model: LanguageModel) -> None:
    """Make the model folder `folder`: complete or absent."""
    with complete_folder(folder) as beside:
        model.write(beside)


def load_model(folder: Path) -> LanguageModel:
    """The model in `folder`, its weights in the dtype they were saved in.

    Raises CheckpointError where there is none or it cannot be read.
    """
    description = _description(folder)
    if description is None:
        from hvdkit.models.hugging_face import load_hugging_face

        return load_hugging_face(folder)
    try:
        if "function" in description:
            model = from_function(str(description["function"]), description["objective"], description["vocab_size"],
                                  description["context"])  # fmt: skip
        else:
            name = str(description.pop("name", description.get("architecture", "model")))
            model = _built_in(ModelConfig.from_dict(description), name, folder)
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    tensors = read_tensors(folder / WEIGHTS_FILE)
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    load_tensors(model, tensors, str(folder))
    return model


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Put the weights in `folder` into `model`, whose dtype stays.

    Raises CheckpointError naming what does not fit, changing nothing.
    """
    from hvdkit.models.hugging_face import HuggingFaceModel, load_hugging_face

    if isinstance(model, HuggingFaceModel):
        # transformers may have cut the weights in several files, and renamed them in there.
        saved = load_hugging_face(folder)
        load_tensors(model.inner, distinct_tensors(saved.inner), str(folder))
    else:
        load_tensors(model, read_tensors(folder / WEIGHTS_FILE), str(folder))


def _built_in(config: ModelConfig, name: str, folder: Path) -> LanguageModel:
    """The model, unless it is far larger than its weights: a few bytes of configuration may name any size."""
    tensors = read_tensors(folder / WEIGHTS_FILE)  # mapped, not yet in memory
    saved = sum(tensor.numel() for tensor in tensors.values())
    positions = config.context * config.width
    parts = {
        "layers": config.layers * config.width * max(config.width, config.feed_forward),
        "vocab_size": config.vocab_size * config.width,
        "segments": config.segments * config.width if config.architecture == "bert" else 0,
        # Rotary positions are not saved but made.
        "context": positions if config.positions == "learned" else positions // _ROTARY - _ROTARY_FREE,
    }
    wrong = [name for name, count in parts.items() if count > saved]
    if wrong or config.layers > len(tensors):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} does not fit {WEIGHTS_FILE}, which holds {saved:,} parameters in {len(tensors):,} "
            f"tensors: {', '.join(wrong or ['layers'])} would take more"
        )
    return from_config(config, name)


def _description(folder: Path) -> dict[str, Any] | None:
    """How hvdkit builds the model; None for a Hugging Face folder."""
    path = folder / CONFIG_FILE
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no model: {CONFIG_FILE} cannot be read ({error})") from error
    description = config.get(CONFIG_KEY) if isinstance(config, dict) else None
    return dict(description) if isinstance(description, dict) else None
