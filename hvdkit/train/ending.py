"""A run that is told to end saves first: SIGTERM, and SIGUSR1, which Slurm sends before the time is over.

The signal reaches ranks at different moments, or some of them only; they agree after a step, so that all save the same
one. A launcher and its supervisor may both hand the same signal on, so that a second one within a moment is the first;
later ones do what they do by default.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hvdkit.runtime import World, gather_objects

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SAME_S = 2.0


class EndedEarlyError(Exception):
    """The run was told to end, and has saved where it was."""


class EndRequest:
    """Whether this run was told to end, by a signal to any of its ranks."""

    def __init__(self) -> None:
        self._received = 0
        self._received_s = 0.0

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within it the signals are noted; for the main thread, where Python has signals."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, world: World) -> str | None:
        """The name of a signal that some rank got, on all ranks; None where none did. Collective."""
        received = max(gather_objects(world, self._received))
        return signal.Signals(received).name if received else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received, self._received_s = number, time.monotonic()
        elif time.monotonic() - self._received_s > _SAME_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
