"""What is typed at a terminal, handed on to a launcher in a session of its own, which cannot read there itself."""

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDIN = 0
_LOOK_S = 0.2
_END_S = 2.0


@contextmanager
def relayed_terminal() -> Iterator[int | None]:
    """Yield the stdin for a child in another session: a pipe with what is typed; None to inherit what is no terminal.

    To be entered with signals blocked, which the thread that reads shall not take.
    """
    if not os.isatty(_STDIN):
        yield None
        return
    for_child, ours = os.pipe()
    ended = threading.Event()
    reader = threading.Thread(target=_relay, args=(ours, ended), name="hvdkit keyboard", daemon=True)
    reader.start()
    try:
        yield for_child
    finally:
        os.close(for_child)  # a reader that is writing ends at once
        ended.set()
        reader.join(_END_S)


def _relay(out: int, ended: threading.Event) -> None:
    with suppress(OSError), os.fdopen(out, "wb", buffering=0) as pipe:  # the terminal or the child is gone
        while not ended.is_set():
            if not select.select([_STDIN], [], [], _LOOK_S)[0]:
                continue
            if os.tcgetpgrp(_STDIN) != os.getpgrp():  # in the background, whoever reads is stopped
                ended.wait(_LOOK_S)
            elif typed := os.read(_STDIN, 65536):
                pipe.write(typed)
            else:
                return
