"""Writes tensors as a safetensors file, and hashes what was written on the way.

The format (github.com/huggingface/safetensors, "Format") is a length, a JSON header and the bytes. Rejected: the
library's `save_file`, which copies every tensor into a `bytes` first and holds Python's lock while it writes, so that a
save in the background would stop the training that it runs beside.
"""

import ctypes
import json
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
import xxhash

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MORE_NAMES = {
    torch.complex64: "C64",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
"""What checkpoints hold beside those, and models do not."""

_ALIGNED = 8
_PIECE_BYTES = 2**22


def header(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The beginning of a file that holds tensors of these dtypes and shapes, in this order.

    Raises ValueError for a dtype that the format has no name for.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape) in shapes.items():
        kind = NAMES.get(dtype) or MORE_NAMES.get(dtype)
        if kind is None:
            raise ValueError(f"{name}: safetensors has no {str(dtype).removeprefix('torch.')}")
        end = start + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write `tensors`, on any device, to the file `path`, which must not exist; returns the hash of what was written.

    The hash is as `hash_file`'s. Not flushed to disk. Raises OSError, and ValueError for a dtype without a name.
    """
    # Wide values first, so that every tensor lies where its dtype may.
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    beginning = header({name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in names})
    digest = xxhash.xxh3_128()
    with path.open("xb", buffering=0) as file:
        _write(file, memoryview(beginning), digest)
        for name in names:
            tensor = tensors[name].detach().cpu().contiguous()  # alive until its bytes are written
            _write(file, _bytes(tensor), digest)
    return digest.hexdigest()


def _write(file: RawIOBase, left: memoryview, digest: Any) -> None:
    while left:
        written = file.write(left[:_PIECE_BYTES]) or 0
        digest.update(left[:written])
        left = left[written:]


def _bytes(tensor: torch.Tensor) -> memoryview:
    # Not by way of `numpy()`, after which torch refuses to resize the storage, as sharding does.
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
