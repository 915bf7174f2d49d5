"""A module's tensors, each once, and their way into safetensors files and back."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdkit.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CONFIG_KEY = "hvdkit_model"
"""Under this name config.json describes a model of hvdkit's; a Hugging Face folder has no such entry."""

_SHOWN = 5


def distinct_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `module`, detached, with each shared tensor once, under the first of its names."""
    seen: set[tuple[Any, ...]] = set()
    distinct = {}
    for name, tensor in module.state_dict().items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or identity not in seen:
            seen.add(identity)
            distinct[name] = tensor.detach()
    return distinct


def load_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors`, as `distinct_tensors` names them, into `module`; all of them or, on an error, none.

    Dtypes are converted. Raises CheckpointError, naming `origin` and what is missing, unexpected or of another shape.
    """
    state = module.state_dict()
    own = distinct_tensors(module)
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in state]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} there and {tuple(state[name].shape)} here"
        for name in tensors
        if name in state and tensors[name].shape != state[name].shape
    ]
    faults = [
        *_fault("missing there", missing),
        *_fault("not in this model", unexpected),
        *_fault("of another shape", shapes),
    ]
    if faults:
        raise CheckpointError(
            f"{origin} does not fit the model: {'; '.join(faults)}. Use the model, vocabulary and context "
            "that it was made with"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` to the safetensors file `path`."""
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the safetensors file `path`, on the CPU; raises CheckpointError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def write_built(folder: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights of `model` and a config.json that says how hvdkit builds it."""
    write_tensors(folder / WEIGHTS_FILE, distinct_tensors(model))
    config = {"model_type": "hvdkit", CONFIG_KEY: dict(description)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _fault(what: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    if not found:
        return []
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{what}: {', '.join(found[:_SHOWN])}{more}"]
