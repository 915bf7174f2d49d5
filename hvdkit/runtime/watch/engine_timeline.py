"""The timeline that Horovod's engine writes: led to a file beside the user's, and read from there as it grows.

Horovod's writer (horovod/common/timeline.cc, 0.28.1) writes a JSON array whose end is always `]` and is overwritten by
`,` before the next event. Its `ts` are microseconds of the steady clock, Python's `time.monotonic`, since Horovod
started; the first record has that moment by the system clock. A name with a quotation mark makes its record invalid.
"""

import codecs
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

_VARIABLE = "HOROVOD_TIMELINE"
_RECORD = re.compile(r'\{"ph": "|\{"name": "process_(?:name|sort_index)", "ph": "M"')
_CHUNK_BYTES = 1 << 20
EPOCH = "start_time_since_epoch_in_micros"


def beside(path: str) -> str:
    """The file that Horovod writes to when the user asked for `path`."""
    return f"{path}.horovod"


def timeline_path() -> str | None:
    """The file that the user asked for by HOROVOD_TIMELINE; None without it, and for `DYNAMIC`."""
    path = os.environ.get(_VARIABLE)
    return path if path and path != "DYNAMIC" else None


@contextmanager
def engine_writes_beside() -> Iterator[None]:
    """While Horovod starts: the file that it finds in HOROVOD_TIMELINE is the one beside the user's."""
    path = timeline_path()
    if path is None:
        yield
        return
    os.environ[_VARIABLE] = beside(path)
    try:
        yield
    finally:
        os.environ[_VARIABLE] = path


class EngineTimeline:
    """Reads the records of Horovod's file `path` as they come, on the monotonic clock in microseconds.

    `epoch_us` is when that clock stood at zero by the system's clock, asked for soon after Horovod asked both.
    """

    def __init__(self, path: str, epoch_us: float) -> None:
        self.path = Path(path)
        self._position = 0
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._start_us: float = 0
        self._epoch_us = epoch_us

    def read_new(self) -> Iterator[dict[str, Any]]:
        """The records that were completed since the last call; those that are no JSON are left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                while chunk := file.read(_CHUNK_BYTES):
                    self._position += len(chunk)
                    self._text += self._decoder.decode(chunk)
                    yield from self._complete_records()
        except FileNotFoundError:
            return

    def remove(self) -> None:
        """Delete the file, whose records have all been read."""
        self.path.unlink(missing_ok=True)

    def _complete_records(self) -> Iterator[dict[str, Any]]:
        starts = [match.start() for match in _RECORD.finditer(self._text)]
        rest = 0
        for start, following in pairwise([*starts, None]):
            try:
                record = json.loads(self._text[start:following].rstrip(",]\n"))
            except ValueError:
                if following is None:  # the end of it has not been written yet
                    break
            else:
                yield self._on_the_monotonic_clock(record)
            rest = len(self._text) if following is None else following
        self._text = self._text[rest:]

    def _on_the_monotonic_clock(self, record: dict[str, Any]) -> dict[str, Any]:
        if EPOCH in record.get("args", {}):
            self._start_us = record["args"][EPOCH] - self._epoch_us
            record["args"] = {"name": "Horovod's engine", EPOCH: round(self._epoch_us)}
        if "ts" in record:
            record["ts"] = round(record["ts"] + self._start_us, 3)
        return record
