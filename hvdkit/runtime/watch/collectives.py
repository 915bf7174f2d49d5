"""`Watch`: is told of every blocking collective that begins and ends, for the timeline and the stall check."""

import os
from contextlib import suppress
from threading import get_ident
from time import monotonic_ns, time_ns
from typing import Any

from hvdkit.runtime.engine import horovod
from hvdkit.runtime.watch.notes import Post
from hvdkit.runtime.watch.open_collective import AGREEMENT, Begun, Open
from hvdkit.runtime.watch.stall import StallCheck, make_mpi_stall_check, make_stall_check
from hvdkit.runtime.watch.timeline import Timeline, open_timeline


class Watch:
    """One per `World`. `begin` and `end` cost well under a microsecond together and may run on any thread:

        watch.begin("bucket 3 of optimizer 0", "all-reduce", "shared_memory", nbytes)
        try:
            ...
        finally:
            watch.end()

    Pairs nest: what is begun inside another one is drawn inside it, and the outermost counts for the stall check.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, comm: Any = None, mpi: Any = None, *, follows_engine: bool = False
    ) -> None:
        """Without a `comm` (under Gloo, in a world of one) nothing can stall here. Collective with one.

        `comm` spans the `size` ranks and is duplicated; `mpi` is mpi4py's module. With `follows_engine` it is told of
        what this rank waits for in Horovod's engine, too, since the engine's own check is off or cannot speak.
        """
        self._pid = os.getpid()
        self._count = 0
        self._open: dict[int, Open] = {}
        self.begun: dict[Any, Begun] = {}
        """By any key, what this rank has begun and does not wait for yet: the stall check does not miss it there."""
        self._timeline: Timeline | None = None
        # Where the monotonic clock has its zero; Horovod has just asked both clocks, and the system's may be set later.
        self._epoch_us = (time_ns() - monotonic_ns()) / 1000
        self._stall: StallCheck | None = None
        if comm is not None and size > 1:
            self._stall = make_mpi_stall_check(self._open, self.begun, mpi, comm.Dup())
        self._records = rank == 0
        self.follows_engine = follows_engine
        self._agreements = 0

    def check_stalls_by(self, post: Post) -> None:
        """Have the stall check speak to the other ranks by `post`, where there is no communicator. Collective."""
        self._stall = make_stall_check(self._open, self.begun, post)

    def begin(
        self, name: str, kind: str, algorithm: str, nbytes: int, ranks: tuple[int, ...] | None = None
    ) -> None:  # fmt: skip
        """A collective begins on this thread.

        `name` and `kind` ("all-reduce", "broadcast", ...) must be the same on all ranks, as they tell whether two
        ranks are in the same collective. `nbytes` is the size of this rank's tensor, and `ranks` are the world ranks
        that take part (None: all).
        """
        self._count = count = self._count + 1
        thread = get_ident()
        around = self._open.get(thread)
        self._open[thread] = (monotonic_ns(), count, name, kind, algorithm, nbytes, ranks, around)

    def begin_agreement(self, what: str) -> None:
        """An exchange of objects between all ranks begins, which is waited for with more patience.

        Ranks make them in one order, so that its number tells one from others; `what` is for the reader.
        """
        self._agreements += 1
        name, thread = f"{self._agreements}: {what}", get_ident()
        around = self._open.get(thread)
        self._open[thread] = (monotonic_ns(), self._count, name, AGREEMENT, "objects", 0, None, around)

    def end(self) -> None:
        """The collective that began last on this thread has ended."""
        thread = get_ident()
        ended = self._open.pop(thread)
        if ended[7] is not None:
            self._open[thread] = ended[7]
        timeline = self._timeline  # another thread may stop it meanwhile
        if timeline is not None and ended[3] != AGREEMENT:
            timeline.add(ended, monotonic_ns(), thread)

    def start_timeline(self, path: str) -> None:
        """Record into the file `path` from now on, with what Horovod's engine writes beside it; rank 0 alone does.

        A file that cannot be opened is logged. Already recording into `path`: goes on.
        """
        if self._records and (self._timeline is None or self._timeline.path != path):
            self.stop_timeline()
            self._timeline = open_timeline(path, self._epoch_us, self._open)

    def stop_timeline(self) -> None:
        """Complete the timeline's file, if one is being recorded; Horovod must have closed its own."""
        timeline, self._timeline = self._timeline, None
        if timeline is not None:
            timeline.close()

    def close(self) -> None:
        """Stop watching, before Horovod is shut down. Not collective."""
        if os.getpid() != self._pid:  # a child that was forked off; the threads are not with it
            return
        if self._timeline is not None:
            with suppress(ValueError):  # Horovod was shut down beside hvdkit
                horovod().stop_timeline()  # its shutdown would drop the events that wait to be written
            self.stop_timeline()
        if self._stall is not None:
            self._stall.close()
            self._stall = None
