"""Shows that a long step is alive: a bar on a terminal, a whole line every few seconds in a pipe."""

import sys
import time
from typing import TextIO

_BAR_WIDTH = 30
TERMINAL_EVERY_S = 0.5
PIPE_EVERY_S = 10.0


class Progress:
    """Tells `stream` how far a step is, at most every `every_s` seconds.

    Used as a context manager, so that the bar's line is ended whatever happens.
    """

    def __init__(self, title: str, stream: TextIO | None = None, every_s: float | None = None) -> None:
        self._title = title
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._every_s = (TERMINAL_EVERY_S if self._is_terminal else PIPE_EVERY_S) if every_s is None else every_s
        self._started = time.monotonic()
        self._said = self._started
        self._drawn = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()

    def show(self, percent: int, activity: str) -> None:
        """Say that the step is at `percent` and what it does, unless that was just said."""
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        text = f"{self._title}: {percent:3d}%, {now - self._started:.0f} s, {activity}"
        if self._is_terminal:
            done = percent * _BAR_WIDTH // 100
            text = f"\r{self._title}: [{'#' * done}{'.' * (_BAR_WIDTH - done)}] {text[len(self._title) + 2 :]}\x1b[K"
            self._drawn = True
        self._stream.write(text if self._is_terminal else text + "\n")
        self._stream.flush()
