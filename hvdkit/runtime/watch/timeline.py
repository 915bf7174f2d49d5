"""The timeline of hvdkit's own collectives and Horovod's engine in one file, in Chrome's trace format (Perfetto).

Format: "Trace Event Format", JSON array form: the closing bracket may be missing, so that the file of a job that was
killed opens too. It grows once a second, on a thread of its own; a clean stop completes it.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from hvdkit.runtime.watch.engine_timeline import EPOCH, EngineTimeline, beside
from hvdkit.runtime.watch.open_collective import Open

_log = logging.getLogger(__name__)

_FLUSH_S = 1.0
_PROCESS = 1_000_000_000
"""hvdkit's own "process"; Horovod numbers its tensors as processes from 1."""


def open_timeline(path: str, epoch_us: float, running: Mapping[int, Open]) -> "Timeline | None":
    """A timeline that records into `path` (overwritten); None, with a warning, if the file cannot be written."""
    try:
        return Timeline(path, epoch_us, running)
    except OSError as error:
        _log.warning("no timeline is recorded: %s cannot be written (%s)", path, error)
        return None


class Timeline:
    """Records collectives into the file `path`, together with what Horovod's engine writes beside it.

    Times are microseconds of the monotonic clock, which has its zero `epoch_us` after 1970 by the system's clock.
    `running` are the collectives that have not ended, by thread: one that takes long gets a mark when it began, since a
    job that hangs in it is killed before it ends.
    """

    def __init__(self, path: str, epoch_us: float, running: Mapping[int, Open]) -> None:
        """Raises OSError if the file cannot be written."""
        self.path = path
        self._file: TextIO = Path(path).open("w", encoding="utf-8")  # noqa: SIM115, open as long as this is
        self._engine = EngineTimeline(beside(path), epoch_us)
        self._running = running
        self._marked: dict[int, Open] = {}
        self._threads: dict[int, int] = {}
        self._added: deque[tuple[Open, int, int]] = deque()
        self._file.write("[\n")
        self._write("process_name", {"name": "hvdkit's collectives (rank 0)", EPOCH: round(epoch_us)})
        self._write("process_sort_index", {"sort_index": -1})
        self._file.flush()
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="hvdkit timeline", daemon=True)
        self._writer.start()

    def add(self, collective: Open, ended_ns: int, thread: int) -> None:
        """A collective that ended at `ended_ns` (monotonic clock) on the thread of that identifier."""
        self._added.append((collective, ended_ns, thread))

    def close(self) -> None:
        """Write what is left and complete the file. Horovod must have closed its own, which is removed."""
        self._stop.set()
        self._writer.join()
        try:
            self._write_added()
            self._file.write(_record("process_labels", {"labels": "complete"}) + "\n]\n")
            self._file.close()
            self._engine.remove()
        except OSError as error:
            _log.warning("the timeline %s is incomplete: %s", self.path, error)

    def _write_now_and_then(self) -> None:
        try:
            while not self._stop.wait(_FLUSH_S):
                self._write_added()
                self._mark_long_ones()
                self._file.flush()
        except OSError as error:
            self._added = deque(maxlen=0)
            _log.warning("the timeline %s is incomplete: %s", self.path, error)

    def _write_added(self) -> None:
        for record in self._engine.read_new():
            self._file.write(json.dumps(record) + ",\n")
        while self._added:
            (began_ns, number, name, kind, algorithm, nbytes, _, _), ended_ns, thread = self._added.popleft()
            event = {
                "name": name,
                "cat": kind,
                "ph": "X",
                "ts": began_ns / 1000,
                "dur": (ended_ns - began_ns) / 1000,
                "pid": _PROCESS,
                "tid": self._row_of(thread),
                "args": {"kind": kind, "algorithm": algorithm, "bytes": nbytes, "number": number},
            }
            self._file.write(json.dumps(event) + ",\n")

    def _mark_long_ones(self) -> None:
        began_before_ns = time.monotonic_ns() - _FLUSH_S * 1e9
        for thread, collective in list(self._running.items()):
            if collective[0] < began_before_ns and self._marked.get(thread) is not collective:
                self._marked[thread] = collective
                event = {
                    "name": f"waits in {collective[2]}",
                    "ph": "i",
                    "s": "t",
                    "ts": collective[0] / 1000,
                    "pid": _PROCESS,
                    "tid": self._row_of(thread),
                    "args": {"kind": collective[3], "algorithm": collective[4]},
                }
                self._file.write(json.dumps(event) + ",\n")

    def _row_of(self, thread: int) -> int:
        """Threads get the numbers 1, 2, ... and keep their names."""
        if thread not in self._threads:
            self._threads[thread] = len(self._threads) + 1
            names = {one.ident: one.name for one in threading.enumerate()}
            self._write("thread_name", {"name": names.get(thread, "ended thread")}, tid=self._threads[thread])
        return self._threads[thread]

    def _write(self, name: str, args: dict[str, Any], **more: int) -> None:
        self._file.write(_record(name, args, **more) + ",\n")


def _record(name: str, args: dict[str, Any], **more: int) -> str:
    """A record that describes hvdkit's own row."""
    return json.dumps({"name": name, "ph": "M", "pid": _PROCESS, **more, "args": args})
