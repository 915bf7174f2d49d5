"""A run that is told to end saves first: SIGTERM, and SIGUSR1, which Slurm sends before the time is over.

The signal reaches ranks at different moments, or some of them only; they agree after a step, so that all save the same
one. A second signal of the kind does what it does by default.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hvdkit.runtime import World, gather_objects

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class EndedEarlyError(Exception):
    """The run was told to end, and has saved where it was."""


class EndRequest:
    """Whether this run was told to end, by a signal to any of its ranks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._received = 0

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within it the signals are noted; in the main thread alone, where Python has signals."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> str | None:
        """The name of a signal that some rank got, on all ranks; None where none did. Collective."""
        received = max(gather_objects(self._world, self._received))
        return signal.Signals(received).name if received else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)
