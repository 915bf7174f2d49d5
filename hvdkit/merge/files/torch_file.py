"""Reads the tensors of a file that `torch.save` wrote, mapped and as weights only: nothing in it is ever executed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hvdkit.errors import MergeError
from hvdkit.merge.files.interface import Info

_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Under these names checkpoints of other programs hold the model's state dict beside other things."""


class TorchFile:
    """A state dict that `torch.save` wrote. Raises MergeError for anything else."""

    def __init__(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            why = str(error) if isinstance(error, OSError) else "it is damaged, or holds more than tensors and numbers"
            raise MergeError(f"{path}: cannot be read as weights only: {why}") from None
        self._tensors = _distinct(_state_dict(content))
        if not self._tensors:
            raise MergeError(f"{path}: holds no state dict, neither whole nor under {', '.join(_STATE_KEYS)}")
        for name, tensor in self._tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized:
                raise MergeError(f"{path}: {name} is sparse or quantised, and cannot be merged")
        self.infos = {name: Info(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `TensorFile`."""
        return self._tensors[name].reshape(-1)[start:stop]

    def close(self) -> None:
        """See `TensorFile`."""
        self._tensors = {}


def _state_dict(content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for candidate in (content, *(content.get(key) for key in _STATE_KEYS)):
        if isinstance(candidate, Mapping) and candidate:
            tensors = {str(name): value.detach() for name, value in candidate.items() if torch.is_tensor(value)}
            if len(tensors) == len(candidate):
                return tensors
    return {}


def _distinct(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied tensors once, under the first name, as safetensors files have them."""
    found: dict[Any, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.layout == torch.strided else name
        found.setdefault(place if tensor.numel() else name, name)
    return {name: tensors[name] for name in found.values()}
