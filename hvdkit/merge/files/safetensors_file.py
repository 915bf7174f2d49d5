"""Reads pieces of tensors from a safetensors file, into one buffer that stays in a core's cache.

The format (github.com/huggingface/safetensors, "Format") is a length, a JSON header and the bytes. Rejected: the
library's `safe_open`, which maps the file, so that what was read counts as memory of the process, and copies into a new
tensor for each slice.
"""

import os
from pathlib import Path
from typing import Any

import torch

from hvdkit.errors import MergeError
from hvdkit.files.tensors import DTYPES
from hvdkit.merge.files.interface import Info
from hvdkit.untrusted import parse_json, shown

_MOST_HEADER_BYTES = 100_000_000


class SafetensorsFile:
    """A safetensors file. Raises MergeError if it is none, or cut short."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise MergeError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            self.infos, self._starts = self._read_header()
        except MergeError:
            self.close()
            raise
        self._buffer = bytearray()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `TensorFile`."""
        dtype = self.infos[name].dtype
        n_bytes = (stop - start) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(0, dtype=dtype)
        if len(self._buffer) < n_bytes:
            self._buffer = bytearray(n_bytes)
        place = self._starts[name] + start * dtype.itemsize
        view, done = memoryview(self._buffer)[:n_bytes], 0
        while done < n_bytes:
            try:
                got = os.preadv(self._descriptor, [view[done:]], place + done)
            except OSError as error:
                raise MergeError(f"{self._path}: {name} cannot be read ({error.strerror})") from None
            if got == 0:
                raise MergeError(f"{self._path}: the file was cut short within {name}")
            done += got
        return torch.frombuffer(self._buffer, dtype=dtype, count=stop - start)

    def close(self) -> None:
        """See `TensorFile`."""
        os.close(self._descriptor)

    def _read_header(self) -> tuple[dict[str, Info], dict[str, int]]:
        file_bytes = os.fstat(self._descriptor).st_size
        n_header = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if file_bytes < 8 or n_header > min(_MOST_HEADER_BYTES, file_bytes - 8):
            raise MergeError(f"{self._path}: is no safetensors file, or was cut short within its header")
        try:
            header: dict[str, Any] = parse_json(os.pread(self._descriptor, n_header, 8))
            header.pop("__metadata__", None)
            unknown = [name for name, entry in header.items() if entry["dtype"] not in DTYPES]
            if unknown:
                raise MergeError(
                    f"{self._path}: {unknown[0]} has dtype {shown(header[unknown[0]]['dtype'])}, which is not known"
                )
            infos = {name: Info(DTYPES[entry["dtype"]], _whole(entry["shape"])) for name, entry in header.items()}
            places = {name: _whole(entry["data_offsets"]) for name, entry in header.items()}
            starts = {name: 8 + n_header + begin for name, (begin, _) in places.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MergeError(f"{self._path}: its header cannot be understood ({error})") from None
        free = 0
        for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
            if begin != free or end - begin != infos[name].n_bytes:
                raise MergeError(f"{self._path}: the place of {name} does not fit its shape")
            free = end
        if 8 + n_header + free != file_bytes:
            raise MergeError(f"{self._path}: has {file_bytes:,} bytes and should have {8 + n_header + free:,}")
        return infos, starts


def _whole(numbers: Any) -> tuple[int, ...]:
    """`numbers`, a list of whole ones as a tensor's sizes and places may be. Raises ValueError for anything else."""
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"{shown(numbers)} where whole numbers, 0 or more, were expected")
    return tuple(numbers)
