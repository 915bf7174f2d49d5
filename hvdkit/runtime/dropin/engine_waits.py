"""Tells the stall check of what this rank asks of Horovod's engine, where the engine's own check says nothing.

That check (horovod/common/stall_inspector.cc) cannot speak where ranks are on several nodes, since an engine at rest
does not cycle there, and is off where hvdkit's ends a stalled job.
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
    """The watch of this world, if it follows the engine."""
    world = current_world()
    return world.watch if world is not None and world.watch.follows_engine else None
