"""Horovod's `start_timeline` and `stop_timeline`, with hvdkit's own collectives in the same file."""

from hvdkit.runtime.engine import horovod
from hvdkit.runtime.startup import current_world
from hvdkit.runtime.watch.engine_timeline import beside


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Record into the file `file_path` (rank 0's) from now on, in Chrome's trace format; every rank calls it.

    `mark_cycles` marks the cycles of Horovod's engine. While recording, the engine's events also stand in
    `file_path` + ".horovod"; `stop_timeline()`, `shutdown()` and a clean exit complete the one file and remove the
    other. Raises ValueError before `init()`, and unless HOROVOD_TIMELINE was set (to `DYNAMIC`) when Horovod started.
    """
    horovod().start_timeline(beside(file_path), mark_cycles)
    world = current_world()
    if world is not None:
        world.watch.start_timeline(file_path)


def stop_timeline() -> None:
    """Stop recording and complete the file; every rank calls it. Raises ValueError before `init()`."""
    horovod().stop_timeline()
    world = current_world()
    if world is not None:
        world.watch.stop_timeline()
