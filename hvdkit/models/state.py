"""A module's tensors, each once, and their way into safetensors files and back."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdkit.errors import CheckpointError
from hvdkit.files.tensors import write_tensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CONFIG_KEY = "hvdkit_model"
"""Under this name config.json describes a model of hvdkit's; a Hugging Face folder has no such entry."""

_SHOWN = 5


State = Mapping[str, torch.Tensor]


def distinct_tensors(module: nn.Module | State) -> dict[str, torch.Tensor]:
    """The tensors of a module, or of its state dict, detached, each shared one once, under the first of its names."""
    seen: set[tuple[Any, ...]] = set()
    distinct = {}
    for name, tensor in (module.state_dict() if isinstance(module, nn.Module) else module).items():
        identity = _identity(tensor)
        if tensor.numel() == 0 or identity not in seen:
            seen.add(identity)
            distinct[name] = tensor.detach()
    return distinct


def copied_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `module` in CPU memory of its own, which does not follow the module; shared stays shared."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    copied = {}
    for name, tensor in module.state_dict().items():
        identity = _identity(tensor)
        if identity not in copies:
            copies[identity] = tensor.detach().to("cpu", copy=True)
        copied[name] = copies[identity]
    return copied


def load_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors`, as `distinct_tensors` names them, into `module`; all of them or, on an error, none.

    Dtypes are converted. Raises CheckpointError, naming `origin` and what is missing, unexpected or of another shape.
    """
    state = module.state_dict()
    own = distinct_tensors(state)
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


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the safetensors file `path`, on the CPU; raises CheckpointError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def write_built(folder: Path, state: State, description: Mapping[str, Any]) -> None:
    """Write the weights of a model, its `state_dict()`, and a config.json that says how hvdkit builds it."""
    write_tensors(folder / WEIGHTS_FILE, distinct_tensors(state))
    config = {"model_type": "hvdkit", CONFIG_KEY: dict(description)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _fault(what: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    if not found:
        return []
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{what}: {', '.join(found[:_SHOWN])}{more}"]
