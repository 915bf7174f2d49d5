"""Folders that are complete or absent: written beside their place, flushed to disk, then renamed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `folder`; when the block ends well it is flushed and takes that name.

    When the block raises, nothing is left behind. What stands under that name stays, and FileExistsError is raised
    at the end.
    """
    beside = hidden_folder(folder)
    try:
        yield beside
        flush_folder(beside)
        publish_folder(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def hidden_folder(folder: Path) -> Path:
    """Make a new, empty folder beside `folder`, and what that lies in, for `publish_folder`; returns it."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    beside.mkdir()
    return beside


def publish_folder(beside: Path, folder: Path) -> None:
    """Give `beside`, which was flushed, the name `folder`. Raises FileExistsError for what stands under that name."""
    flush_entry(beside)
    _rename(beside, folder)
    flush_entry(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete `folder` so that, interrupted, it is absent all the same (what is left has a hidden name)."""
    doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def flush_folder(folder: Path, names: Iterable[str] | None = None) -> None:
    """Force everything in `folder` to disk, or the files `names` in it and the folders on the way to them."""
    paths = list(folder.rglob("*")) if names is None else [folder / name for name in names]
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    folders = {path if path.is_dir() else path.parent for path in paths}
    for path in sorted({folder, *folders}, key=lambda path: len(path.parts), reverse=True):
        flush_entry(path)


def _rename(beside: Path, folder: Path) -> None:
    try:
        beside.rename(folder)
    except OSError as error:
        # A folder that is not empty: POSIX leaves the choice between two numbers.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder)) from error
        raise


def flush_entry(folder: Path) -> None:
    """Force to disk which files the folder has, not what is in them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
