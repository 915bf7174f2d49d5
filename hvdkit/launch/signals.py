"""The signals that `hvdkit run` gets while it is busy with a job: none ends it by surprise, none is lost.

The launcher is waited for with the signals blocked, so that `sigwaitinfo` also tells who sent one: a terminal's Ctrl-C
reaches the launcher without us. At all other times (hosts are asked, leftovers ended) a handler notes them. A signal
that was ignored from the start, as SIGHUP is under nohup, stays ignored.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def heeded() -> set[signal.Signals]:
    """`FORWARDED` without what is ignored: of blocked signals, Linux keeps those as well."""
    return {number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN}


class Signals(AbstractContextManager["Signals"]):
    """While entered, signals to this process are noted. For the main thread."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self.told: int | None = None
        """The first signal that told this process to end."""

    def __enter__(self) -> "Signals":
        for number in heeded():
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int) -> None:
        """A signal came. The first that asks for an end is what counts."""
        if number in ENDING and self.told is None:
            self.told = number

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until a signal asks for an end."""
        deadline = time.monotonic() + seconds
        with blocked(heeded()):
            while self.told is None and (left := deadline - time.monotonic()) > 0:
                received = signal.sigtimedwait(heeded(), left)
                if received is not None:
                    self.note(received.si_signo)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.note(number)


@contextmanager
def blocked(numbers: set[signal.Signals]) -> Iterator[set[signal.Signals | int]]:
    """Within, these signals wait until they are asked for; yields the mask from before, which children should get."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def unblocked(mask: set[signal.Signals | int]) -> Iterator[None]:
    """Within `blocked`: for a while this mask again."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
