"""Model folders: weights in safetensors and a config.json, hvdkit's own or Hugging Face's."""

import json
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
            model = from_function(description["function"], description["objective"], description["vocab_size"],
                                  description["context"])  # fmt: skip
        else:
            name = str(description.pop("name", description.get("architecture", "model")))
            model = from_config(ModelConfig.from_dict(description), name)
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


def _description(folder: Path) -> dict[str, Any] | None:
    """How hvdkit builds the model; None for a Hugging Face folder."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no model: {CONFIG_FILE} cannot be read ({error})") from error
    description = config.get(CONFIG_KEY) if isinstance(config, dict) else None
    return dict(description) if isinstance(description, dict) else None
