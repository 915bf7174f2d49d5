"""Reads the tensors of a file that `torch.save` wrote, mapped and as weights only: nothing in it is ever executed."""

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hvdkit.errors import MergeError
from hvdkit.merge.files.interface import Info

_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
"""Under these names checkpoints of other programs hold the model's state dict beside other things."""

_LONGEST_NAME = 300
_DAMAGED = (
    OSError, EOFError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, ArithmeticError, AssertionError,
    AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What torch raises for a damaged file: its restricted unpickler obeys whatever it reads, and checks little."""


class TorchFile:
    """A state dict that `torch.save` wrote. Raises MergeError for anything else."""

    def __init__(self, path: Path) -> None:
        try:
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _DAMAGED as error:
            why = str(error) if isinstance(error, OSError) else "it is damaged, or holds more than tensors and numbers"
            raise MergeError(f"{path}: cannot be read as weights only: {why}") from None
        found = _state_dict(content)
        if not found:
            raise MergeError(f"{path}: holds no state dict, neither whole nor under {', '.join(_STATE_KEYS)}")
        for name, tensor in found.items():
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
                raise MergeError(f"{path}: {name} is sparse, nested, quantised or without values, and cannot be merged")
            # A few bytes may claim to be a tensor of any size, which would be made when it is read.
            if tensor.nbytes > tensor.untyped_storage().nbytes():
                raise MergeError(f"{path}: {name} has more elements than its file, and cannot be merged")
        self._tensors = _distinct(found)
        self.infos = {name: Info(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `TensorFile`."""
        return self._tensors[name].reshape(-1)[start:stop]

    def close(self) -> None:
        """See `TensorFile`."""
        self._tensors = {}


def _check_archive(path: Path) -> None:
    """Raises one of _DAMAGED for what torch would take hours or all memory for: names of functions that are longer than
    any (it searches its message about a refused one by a pattern), and compressed parts, which it never writes."""
    with zipfile.ZipFile(path) as file:
        for part in file.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError("compressed")
            if part.filename.endswith("data.pkl"):
                for opcode, argument, _ in pickletools.genops(file.read(part)):
                    if opcode.name == "GLOBAL" and len(str(argument)) > _LONGEST_NAME:
                        raise ValueError("a name is too long")


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
