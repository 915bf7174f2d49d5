"""Folders that are complete or absent: written beside their place, flushed to disk, then renamed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `folder`; when the block ends well it is flushed and takes that name.

    When the block raises, nothing is left behind. What stands under that name stays, and FileExistsError is raised
    at the end.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    beside.mkdir()
    try:
        yield beside
        flush_folder(beside)
        _rename(beside, folder)
        _flush_entry(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete `folder` so that, interrupted, it is absent all the same (what is left has a hidden name)."""
    doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def flush_folder(folder: Path) -> None:
    """Force everything in `folder` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*(entry for entry in folder.rglob("*") if entry.is_dir()), folder]:
        _flush_entry(path)


def _rename(beside: Path, folder: Path) -> None:
    try:
        beside.rename(folder)
    except OSError as error:
        # A folder that is not empty: POSIX leaves the choice between two numbers.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder)) from error
        raise


def _flush_entry(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
