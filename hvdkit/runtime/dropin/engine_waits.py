"""Tells the stall check of what this rank asks of Horovod's engine, where ranks are on several nodes.

There an engine at rest does not cycle, so that its own check (horovod/common/stall_inspector.cc) cannot speak.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

from hvdkit.runtime.startup import current_world
from hvdkit.runtime.watch import Begun, Watch

_UNKNOWN: Begun = ("wait", "Horovod's engine", None)
_thread = threading.local()


def noted(what: Begun, operation: Callable[[], Any], *, gives_handle: bool) -> Any:
    """The result of `operation`, which asks the engine for `what` and waits for it, or gives a handle to `wait` for."""
    watch = _watch()
    if watch is None:
        return operation()
    around = getattr(_thread, "what", None)
    _thread.what = what
    try:
        result = operation()
    finally:
        _thread.what = around
    if gives_handle:
        watch.begun[result] = what
    return result


def watched(wait: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`wait`, Horovod's wait for a handle, of which the stall check knows."""

    @functools.wraps(wait)
    def watched_wait(handle: Any) -> Any:
        watch = _watch()
        if watch is None:
            return wait(handle)
        kind, name, ranks = watch.begun.get(handle) or getattr(_thread, "what", None) or _UNKNOWN
        watch.begin(name, kind, "horovod", 0, ranks)
        watch.begun.pop(handle, None)
        try:
            return wait(handle)
        finally:
            watch.end()

    return watched_wait


def _watch() -> Watch | None:
    """The watch of this world, if its engine rests for good."""
    world = current_world()
    rests = world is not None and world.comm is not None and world.local_size < world.size
    return world.watch if world is not None and rests else None
