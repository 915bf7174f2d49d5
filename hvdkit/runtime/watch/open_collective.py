"""A collective that has begun and not ended, as a plain tuple, since one is made on every call."""

from typing import Any

Open = tuple[int, int, str, str, str, int, "tuple[int, ...] | None", Any]
"""When it began (monotonic clock, ns), its number among this rank's collectives (from 1), name, kind, algorithm, bytes,
the ranks that take part (None: all), and the `Open` around it on the same thread or None."""

Begun = tuple[str, str, "tuple[int, ...] | None"]
"""An operation that was begun and is waited for later: kind, name, and the ranks that take part (None: all)."""

AGREEMENT = "agreement"
"""The kind of an exchange of objects: ranks may come to it late for good reasons (one writes a checkpoint, say)."""


def outermost(collective: Open) -> Open:
    """The collective that began first of those that are nested around this one."""
    while collective[7] is not None:
        collective = collective[7]
    return collective
