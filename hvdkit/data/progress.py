"""A line every few seconds while long work goes on; nothing at all about short work."""

import time
from collections.abc import Callable

Say = Callable[[str], None]


class Progress:
    """Counts bytes of `total_bytes` done and tells `say` about it every `every_s` seconds, not before the first."""

    def __init__(self, task: str, total_bytes: int | None, say: Say, every_s: float = 5.0) -> None:
        self._task = task
        self._total = total_bytes
        self._say = say
        self._every_s = every_s
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, n_bytes: int) -> None:
        """Note that `n_bytes` more are done."""
        self._done += n_bytes
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        rate = self._done / (now - self._started)
        text = f"{self._task}: {self._done / 1e6:,.0f} MB"
        if self._total:
            left_s = max(0, self._total - self._done) / rate if rate else 0.0
            text += f" of {self._total / 1e6:,.0f}, {left_s:,.0f} s left"
        self._say(f"{text} ({rate / 1e6:,.1f} MB/s)")
