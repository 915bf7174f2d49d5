"""Which texts make the corpus: the files behind paths, folders and globs, or one's own function.

The order is that of the arguments, within a folder or glob that of the names, so that every node and every run sees
the same. A file that several arguments reach comes once, where the first one put it. Each file has a `label`, its
path relative to the folder (or to the part of the glob before the first wildcard), so that it does not depend on
where that lies; labels decide which documents are held out.

`python:NAME` is a part of Python's standard library, by package: one of `PYTHON_PARTS`, named after its first, or
`python:rest`.
"""

import glob
import itertools
import os
import sysconfig
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from hvdkit.data.named_function import names_function
from hvdkit.errors import DataError

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_NOT_STANDARD_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload"})
_SNIFFED_BYTES = 8192
_PREFIX, _REST = "python:", "rest"

PYTHON_PARTS: dict[str, tuple[str, ...]] = {
    "asyncio": ("asyncio", "concurrent", "email", "html", "http", "json", "multiprocessing", "urllib", "wsgiref", "xml",
                "xmlrpc"),
    "idlelib": ("idlelib", "curses", "tkinter", "turtledemo"),
    "encodings": ("encodings",),
}  # fmt: skip
"""Packages that are about one thing: networks and their formats, windows, and tables of characters."""


@dataclass(frozen=True)
class TextFile:
    """A file of the corpus. `explicit` ones were named, not found: there, one that is not text is an error."""

    path: Path
    label: str
    explicit: bool = True


@dataclass(frozen=True)
class TextFunction:
    """`package.module:function`, which returns an iterable of texts or of (name, text)."""

    name: str


Source = TextFile | TextFunction


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """The sources that `arguments` name, in order; without arguments Python's own standard library.

    Raises DataError for a path that is not there, a folder without a file, and a glob without a match.
    """
    if not arguments:
        return list(standard_library())
    found: dict[object, Source] = {}
    for argument in arguments:
        for source in _sources(argument):
            # Twice the same text could stand on both sides of the held-out split.
            identity = source.path.resolve() if isinstance(source, TextFile) else source
            found.setdefault(identity, source)
    return list(found.values())


def standard_library() -> list[TextFile]:
    """The `.py` files of Python's standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in _folder(root, _SKIPPED_FOLDERS | _NOT_STANDARD_LIBRARY) if file.path.suffix == ".py"]
    if not files:
        raise DataError(f"Python's standard library has no source files in {root}; name your own text with --data")
    return files


def python_parts() -> list[str]:
    """The arguments that divide Python's standard library by package; together they are all of it, each file once."""
    return [f"{_PREFIX}{name}" for name in (*PYTHON_PARTS, _REST)]


def is_text(path: Path) -> bool:
    """Whether `path` holds no zero byte near its beginning, which is how git and grep tell text from the rest."""
    with path.open("rb") as file:
        return b"\0" not in file.read(_SNIFFED_BYTES)


def _sources(argument: str) -> Sequence[Source]:
    if argument.startswith(_PREFIX) and not Path(argument).exists():
        if argument not in python_parts():
            raise DataError(f"--data {argument}: there is no such part; use one of {', '.join(python_parts())}")
        name = argument.removeprefix(_PREFIX)
        return [file for file in standard_library() if _part_of(file) == name]
    return [TextFunction(argument)] if names_function(argument) else _files(argument)


def _part_of(file: TextFile) -> str:
    package, _, inner = file.label.partition("/")
    return next((name for name, packages in PYTHON_PARTS.items() if inner and package in packages), _REST)


def _files(argument: str) -> Sequence[TextFile]:
    path = Path(argument).expanduser()
    if path.is_dir():
        files = list(_folder(path))
        if not files:
            raise DataError(f"--data {argument}: the folder holds no files (hidden ones do not count)")
        return files
    if path.is_file():
        return [TextFile(path, path.name)]
    if path.exists():
        raise DataError(f"--data {argument}: not a regular file; text is read more than once, which a pipe cannot do")
    if not glob.has_magic(argument):
        raise DataError(f"--data {argument}: there is no such file or folder (working folder: {Path.cwd()})")
    # As a shell would expand it: a folder that matches stands for its files.
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    found = [
        TextFile(file, file.relative_to(root).as_posix(), explicit=False)
        for match in sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute)
        for file in ([inner.path for inner in _folder(match)] if match.is_dir() else [match])
    ]
    if not found:
        raise DataError(f"--data {argument}: the pattern matches no file (working folder: {Path.cwd()})")
    return found


def _folder(root: Path, skipped: Set[str] = _SKIPPED_FOLDERS) -> Iterator[TextFile]:
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in skipped and not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield TextFile(path, path.relative_to(root).as_posix(), explicit=False)
