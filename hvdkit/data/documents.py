"""Reads the sources as documents, some megabytes of whole lines at a time, so that a file may be larger than memory.

Plain text and source code are one document a file; JSON Lines (.jsonl, .ndjson) one a line; a function's one an item.
Text stays as it is, line ends too; only a byte-order mark at the beginning is dropped.
What cannot be read is a DataError naming file and line, or with `skip_bad` a line that is left out and counted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hvdkit.data.named_function import import_function
from hvdkit.data.sources import Source, TextFile, TextFunction, is_text
from hvdkit.errors import DataError

_JSON_LINES = frozenset({".jsonl", ".ndjson", ".jsonlines"})
_PIECE_BYTES = 1 << 22
_BOM = b"\xef\xbb\xbf"
_REMEDY = "mend it, or use --skip-bad to leave such lines out"


@dataclass(frozen=True)
class Piece:
    """Some text of the document `name`; `ends` with its last one."""

    name: str
    text: str
    ends: bool


@dataclass
class Dropped:
    """What was left out: lines (or items of a function) that `skip_bad` allowed, and files that are not text."""

    bad: int = 0
    first_bad: str = ""
    binary: int = 0


@dataclass(frozen=True)
class Reader:
    """Iterating gives the pieces of `sources`, anew each time; `dropped` counts over the latest iteration."""

    sources: Sequence[Source]
    text_field: str = "text"
    skip_bad: bool = False
    dropped: Dropped = field(default_factory=Dropped)

    def __iter__(self) -> Iterator[Piece]:
        self.dropped.bad, self.dropped.first_bad, self.dropped.binary = 0, "", 0
        for source in self.sources:
            if isinstance(source, TextFunction):
                yield from self._items(source)
            else:
                yield from self._file(source)

    def _file(self, file: TextFile) -> Iterator[Piece]:
        try:
            if not is_text(file.path):
                if file.explicit and not self.skip_bad:
                    raise DataError(f"{file.path}: not a text file (it holds zero bytes); {_REMEDY}")
                self.dropped.binary += 1
            elif file.path.suffix.lower() in _JSON_LINES:
                yield from self._records(file)
            else:
                yield from self._text(file)
        except OSError as error:
            raise DataError(f"{file.path}: cannot be read ({error.strerror})") from error

    def _text(self, file: TextFile) -> Iterator[Piece]:
        # One piece is held back, since only the last one ends the document.
        held: str | None = None
        for number, lines in _blocks(file.path):
            text = self._decode(file.path, number, lines)
            if not text:
                continue
            if held is not None:
                yield Piece(file.label, held, ends=False)
            held = text
        if held is not None:
            yield Piece(file.label, held, ends=True)

    def _decode(self, path: Path, number: int, lines: list[bytes]) -> str:
        """The text of `lines`, which begin at line `number`; bad ones are dropped where that is allowed."""
        try:
            return b"".join(lines).decode()
        except UnicodeDecodeError:
            good = []
            for offset, line in enumerate(lines):
                try:
                    good.append(line.decode())
                except UnicodeDecodeError as error:
                    self._bad(_not_utf8(path, number + offset, error))
            return "".join(good)

    def _records(self, file: TextFile) -> Iterator[Piece]:
        for first, lines in _blocks(file.path):
            for number, line in enumerate(lines, first):
                if line.strip():
                    try:
                        text = self._record(file.path, number, line)
                    except DataError as error:
                        self._bad(str(error), error)
                        continue
                    if text:
                        yield Piece(f"{file.label}:{number}", text, ends=True)

    def _record(self, path: Path, number: int, line: bytes) -> str:
        place = f"{path}, line {number}"
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(path, number, error)) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({error}); {_REMEDY}") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{place}: a JSON {_kind(record)} where an object with a text field was expected; {_REMEDY}"
            )
        if self.text_field not in record:
            names = ", ".join(sorted(record)[:8]) or "none"
            raise DataError(f"{place}: no field {self.text_field!r} (it has: {names}); name it with --text-field")
        text = record[self.text_field]
        if not isinstance(text, str):
            raise DataError(f"{place}: field {self.text_field!r} is a JSON {_kind(text)}, not a string; {_REMEDY}")
        _check_unicode(text, place)
        return text

    def _items(self, source: TextFunction) -> Iterator[Piece]:
        function = import_function(source.name, DataError)
        try:
            items = function()
            if isinstance(items, str):
                raise DataError(f"{source.name} returned one text; it must return an iterable of texts, such as a list")
            for number, item in enumerate(items):
                name, text = item if isinstance(item, tuple) and len(item) == 2 else (str(number), item)
                place = f"{source.name}, item {number}"
                try:
                    if not isinstance(name, str) or not isinstance(text, str):
                        raise DataError(f"{place}: neither a text nor a (name, text) pair, but {type(item).__name__}")
                    _check_unicode(text, place)
                except DataError as error:
                    self._bad(str(error), error)
                    continue
                if text:
                    yield Piece(name, text, ends=True)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{source.name} failed: {type(error).__name__}: {error}") from error

    def _bad(self, message: str, cause: Exception | None = None) -> None:
        if not self.skip_bad:
            raise DataError(message) from cause
        self.dropped.bad += 1
        self.dropped.first_bad = self.dropped.first_bad or message


def _blocks(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Whole lines of `path`, some megabytes at a time, with the number of the first one (from 1)."""
    with path.open("rb") as file:
        number = 1
        while lines := file.readlines(_PIECE_BYTES):
            if number == 1:
                lines[0] = lines[0].removeprefix(_BOM)
            yield number, lines
            number += len(lines)


def _not_utf8(path: Path, number: int, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"{path}, line {number}, byte {error.start} of the line: 0x{byte:02x} is not UTF-8; {_REMEDY}"


def _check_unicode(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: half a surrogate pair at character {error.start}; {_REMEDY}") from None


def _kind(value: object) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
