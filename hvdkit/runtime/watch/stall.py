"""The stall check of blocking collectives: says which ranks have not come, and ends the job where that was asked for.

A thread on every rank wakes now and then. One whose rank has waited too long in a collective asks all others what
they are doing, and their threads answer whatever the main thread is at. Horovod's engine does the same with what it
negotiates (horovod/common/stall_inspector.cc). The lowest rank of those that wait in a collective speaks for them: it
asks first, and a higher one that is asked leaves the word to it, though not for ever.

A rank may come late to an agreement (`begin_agreement`) because it works: while its check answers, the others wait
ten times as long for it. One that does not answer twice in a row was stopped, or is cut off.
"""

import functools
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from hvdkit.errors import HvdkitError
from hvdkit.runtime.failure import fail_job
from hvdkit.runtime.watch.limits import StallLimits, stall_limits
from hvdkit.runtime.watch.notes import Notes, Post
from hvdkit.runtime.watch.open_collective import AGREEMENT, Begun, Open, outermost
from hvdkit.runtime.words import ranks_in_words

_log = logging.getLogger(__name__)

_NAME_LIMIT = 200
"""Characters of a name, and with `_NOTE_LIMIT` collectives of a rank, that fit into a note."""
_NOTE_LIMIT = 4
PATIENCE = 10
"""How many times as long as in a collective a rank waits in an agreement for one that still answers."""

Place = tuple[str, str, str]
"""Kind, name and algorithm of a collective that a rank is in."""


def make_stall_check(
    running: Mapping[int, Open], begun: Mapping[Any, Begun], post: Post
) -> "StallCheck | None":  # fmt: skip
    """The stall check that asks other ranks by `post`; None where it is switched off."""
    limits = stall_limits()
    return None if limits is None else StallCheck(running, begun, post, limits)


def make_mpi_stall_check(
    running: Mapping[int, Open], begun: Mapping[Any, Begun], mpi: Any, comm: Any
) -> "StallCheck | None":
    """The stall check over `comm`, which it keeps; None where it is switched off or MPI's threads do not allow it."""
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        if comm.Get_rank() == 0:
            _say_what_is_lost()
        return None
    return make_stall_check(running, begun, Notes(mpi, comm))


@functools.cache  # once in this process
def _say_what_is_lost() -> None:
    _log.warning(
        'MPI was started below MPI_THREAD_MULTIPLE: gradients and strategy="auto" go through Horovod\'s engine, and '
        "collectives that hang are not noticed"
    )


class StallCheck:
    """Looks now and then at `running`, the collectives of this rank by thread, and knows what it has `begun`, until
    `close`."""

    def __init__(
        self, running: Mapping[int, Open], begun: Mapping[Any, Begun], notes: Post, limits: StallLimits
    ) -> None:
        self._running, self._begun, self._notes, self._limits = running, begun, notes, limits
        self._wake_s = min(1.0, max(0.05, limits.warn_s / 10))
        self._answer_s = max(2.0, 3 * self._wake_s)
        self._waiting: Open | None = None
        self._due_s = 0.0
        self._round = 0
        self._asked_s: float | None = None
        self._answers: dict[int, list[Place]] = {}
        self._were_silent: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvdkit stall check", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking. Not collective."""
        self._stop.set()
        self._thread.join()
        self._notes.close()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._wake_s):
                self._look()
        except Exception:
            _log.exception("the stall check of rank %d has ended", self._notes.rank)

    def _look(self) -> None:
        running = self._oldest_first()
        self._follow(running[0] if running else None)
        places = [_place(one) for one in running[:_NOTE_LIMIT]]
        for sender, (kind, number, theirs) in self._notes.receive():
            if kind == "ask":
                self._notes.send(sender, ("answer", number, self._begun_of(theirs) or places))
                if self._waiting is not None and sender < self._notes.rank and _is_in(self._waiting, theirs):
                    self._asked_s = None
                    self._due_s = self._due_after_another(self._waited_s(self._waiting))
            elif number == self._round:
                self._answers[sender] = theirs
        if self._waiting is None:
            return
        waited_s = self._waited_s(self._waiting)
        if self._asked_s is not None:
            if len(self._answers) == len(self._others(self._waiting)) or waited_s - self._asked_s > self._answer_s:
                self._asked_s = None
                self._speak(self._waiting)
            elif not self._notes.is_reliable:
                self._ask(self._waiting)
        elif waited_s > self._due_s:
            self._due_s = self._next_due_s(waited_s)
            self._asked_s = waited_s
            self._round += 1
            self._answers = {}
            self._ask(self._waiting)

    def _ask(self, waiting: Open) -> None:
        for rank in self._others(waiting):
            if rank not in self._answers:
                self._notes.send(rank, ("ask", self._round, [_place(waiting)]))

    def _begun_of(self, asked: list[Place]) -> list[Place]:
        """Those of the `asked` places that this rank has begun, and so is not missed in."""
        begun = {(kind, name[:_NAME_LIMIT]) for kind, name, _ in list(self._begun.values())}
        return [place for place in asked if (place[0], place[1]) in begun]

    def _follow(self, oldest: Open | None) -> None:
        if oldest is not self._waiting:
            # Rank 0 comes first; who hears of it meanwhile leaves the word to it.
            self._due_s = self._limits.warn_s + self._answer_s * (self._notes.rank > 0)
            self._asked_s = None
            self._were_silent = set()
        self._waiting = oldest

    def _next_due_s(self, waited_s: float) -> float:
        due_s = waited_s + self._limits.warn_s
        if waited_s < self._limits.shutdown_s < due_s:
            return self._limits.shutdown_s
        return due_s

    def _due_after_another(self, waited_s: float) -> float:
        """When to speak after a lower rank has: it may fail to end the job, where a network is cut."""
        due_s, shutdown_s = waited_s + self._limits.warn_s, self._limits.shutdown_s
        return min(due_s, shutdown_s + self._answer_s) if waited_s < shutdown_s else due_s

    def _speak(self, waiting: Open) -> None:
        _, _, name, kind, algorithm, _, _, _ = waiting
        waited_s = self._waited_s(waiting)
        silent = {rank for rank in self._others(waiting) if rank not in self._answers}
        patience = PATIENCE if kind == AGREEMENT and not silent & self._were_silent else 1
        self._were_silent = silent
        if waited_s < self._limits.warn_s * (1 if silent else patience):
            return
        text = f"waited {waited_s:.0f} s in {kind} {name!r} ({algorithm}): {self._who_is_missing(waiting)}"
        if 0 < self._limits.shutdown_s * patience < waited_s:
            fail_job(HvdkitError(f"it has {text}"), self._notes.rank, self._notes.size)
        _log.warning("rank %d of %d has %s", self._notes.rank, self._notes.size, text)

    def _who_is_missing(self, waiting: Open) -> str:
        away: list[int] = []
        silent: list[int] = []
        elsewhere: dict[str, list[int]] = {}
        for rank in self._others(waiting):
            places = self._answers.get(rank)
            if not places:
                away.append(rank)
                if places is None:
                    silent.append(rank)
            elif not _is_in(waiting, places):
                kind, name, algorithm = places[0]
                elsewhere.setdefault(f"{kind} {name!r} ({algorithm})", []).append(rank)
        said = []
        if away:
            said.append(f"{ranks_in_words(away)} {'has' if len(away) == 1 else 'have'} not come")
        if silent:
            said[-1] += (
                f" ({ranks_in_words(silent)} {'does' if len(silent) == 1 else 'do'} not answer: ended, stopped or hung)"
            )
        said += [
            f"{ranks_in_words(ranks)} {'is' if len(ranks) == 1 else 'are'} in {place}"
            for place, ranks in elsewhere.items()
        ]
        return ", ".join(said) or "all ranks are in it, so its transfer hangs"

    def _others(self, waiting: Open) -> list[int]:
        members = range(self._notes.size) if waiting[6] is None else waiting[6]
        return [rank for rank in members if rank != self._notes.rank]

    def _oldest_first(self) -> list[Open]:
        return sorted(map(outermost, list(self._running.values())), key=itemgetter(0))

    @staticmethod
    def _waited_s(waiting: Open) -> float:
        return (time.monotonic_ns() - waiting[0]) / 1e9


def _place(collective: Open) -> Place:
    _, _, name, kind, algorithm, _, _, _ = collective
    return kind, name[:_NAME_LIMIT], algorithm


def _is_in(waiting: Open, places: Iterable[Iterable[str]]) -> bool:
    kind, name, _ = _place(waiting)
    return any((theirs_kind, theirs_name) == (kind, name) for theirs_kind, theirs_name, _ in places)
