"""Nested state (an optimizer's, say) as JSON beside named tensors, and back, exactly."""

from typing import Any

import torch

from hvdkit.errors import CheckpointError
from hvdkit.untrusted import shown

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


def pack(item: Any, tensors: dict[str, torch.Tensor], name: str = "", *, copies: bool = True) -> Any:
    """What JSON can hold of `item`; its tensors are put into `tensors` under names that begin with `name`.

    With `copies` they do not follow the living ones; without, only those that share memory are copied, as safetensors
    wants it. Dictionaries (string or whole-number keys), lists, tuples, tensors, numbers, strings, booleans and None.
    Raises CheckpointError, naming the place, for anything else.
    """
    if isinstance(item, torch.Tensor):
        while name in tensors:  # {"a": {"b": ...}, "a.b": ...}
            name += "'"
        value = item.detach().cpu().contiguous()
        is_alone = value.untyped_storage().nbytes() == value.nbytes
        is_new = all(value.data_ptr() != other.data_ptr() for other in tensors.values())
        tensors[name] = value if is_alone and is_new and not copies else value.clone()
        return {_TENSOR: name}
    if isinstance(item, dict):
        if not all(isinstance(key, str | int) for key in item):
            raise CheckpointError(f"{name or 'the state'}: only strings and whole numbers can be keys in a checkpoint")
        return {
            _ITEMS: [
                [key, pack(value, tensors, f"{name}.{key}".lstrip("."), copies=copies)] for key, value in item.items()
            ]
        }
    if isinstance(item, list | tuple):
        values = [
            pack(value, tensors, f"{name}.{number}".lstrip("."), copies=copies) for number, value in enumerate(item)
        ]
        return {_TUPLE: values} if isinstance(item, tuple) else values
    if item is None or isinstance(item, bool | int | float | str):
        return item
    raise CheckpointError(f"{name}: a {type(item).__name__} cannot be kept in a checkpoint")


def unpack(item: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `pack`, for what `parse_json` gave. Raises CheckpointError for what `pack` does not make."""
    if isinstance(item, list):
        return [unpack(value, tensors) for value in item]
    if not isinstance(item, dict):
        return item
    kind, content = next(iter(item.items())) if len(item) == 1 else (None, None)
    if kind == _TENSOR and isinstance(content, str) and content in tensors:
        return tensors[content]
    if kind == _TUPLE and isinstance(content, list):
        return tuple(unpack(value, tensors) for value in content)
    if kind == _ITEMS and isinstance(content, list) and all(_is_entry(entry) for entry in content):
        return {key: unpack(value, tensors) for key, value in content}
    raise CheckpointError(f"a saved state cannot hold {shown(item)}")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str | int)
