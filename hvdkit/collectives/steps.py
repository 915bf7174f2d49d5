"""Communication between nodes as steps: a generator that yields the requests it waits for.

An algorithm written this way can be driven alone (`drive`), or several blocks at once (`drive_together`), so that the
wire works on one block while memory works on the next.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

_PATIENCE_TURNS = 10
_NAP_S = 50e-6
"""After so many looks at requests of which none was complete, a rank leaves the core to others for so long."""

Steps = Generator[list[Any], None, None]
"""Yields lists of mpi4py requests; goes on when all of a list are complete."""


def drive(mpi: Any, steps: Steps) -> None:
    """Run `steps` to its end."""
    for requests in steps:
        mpi.Request.Waitall(requests)


def drive_together(mpi: Any, blocks: Iterable[Steps], lanes: int) -> None:
    """Run all `blocks`, number k in lane k mod `lanes`: blocks of one lane one after another, lanes side by side.

    Ranks may be at different blocks, but each lane communicates under communicators of its own, in one order.
    """
    waiting: Iterator[Steps] = iter(blocks)
    running: list[tuple[Steps, list[Any]] | None] = [None] * lanes
    next_lane, is_more, idle_turns = 0, True, 0
    while is_more or any(running):
        idle_turns += 1
        # One look at all of them: each makes the library look at every connection.
        mpi.Request.Testsome([request for entry in running if entry is not None for request in entry[1]])
        for lane, entry in enumerate(running):
            if entry is not None and not any(entry[1]):
                running[lane] = _go_on(entry[0])
                idle_turns = 0
        while is_more and running[next_lane] is None:
            steps = next(waiting, None)
            is_more = steps is not None
            if steps is not None:
                running[next_lane] = _go_on(steps)
                next_lane = (next_lane + 1) % lanes
                idle_turns = 0
        if idle_turns > _PATIENCE_TURNS:
            time.sleep(_NAP_S)


def _go_on(steps: Steps) -> tuple[Steps, list[Any]] | None:
    requests = next(steps, None)
    return None if requests is None else (steps, requests)
