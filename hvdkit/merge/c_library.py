"""Two calls of the C library that Python does not have. Where it lacks them, nothing is done."""

import ctypes
from functools import cache
from typing import Any

_START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE"""


def trim_heap() -> None:
    """Give what is free back to the system.

    Until version 2.38 the heap of glibc falls into pieces under aligned blocks, which are what torch asks for, and
    would grow by some MB with every tensor.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def start_writing(descriptor: int, start: int, n_bytes: int) -> None:
    """Have the kernel write what it holds of a file to disk, while this process goes on."""
    sync = _function("sync_file_range")
    if sync is not None:
        sync(descriptor, ctypes.c_int64(start), ctypes.c_int64(n_bytes), _START_WRITING)


@cache
def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
