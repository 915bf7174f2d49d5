"""The rounds of a collective's benchmark: every contender once per round and size, close together in time.

A machine's speed drifts by tens of percent within minutes, so two contenders are compared within each round, and the
order of turns moves on by one from round to round, so that nobody always follows the same neighbour.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.collective import rounded
from benchmarks.job import launch_environment
from benchmarks.peers import KIB, MIB, TRIAD, PeerJob
from benchmarks.turns import Job, JobFailedError, running

START_LIMIT_S = 120
TURN_LIMIT_S = 120


@dataclass
class Measured:
    """Times of one contender at one size: a list per round, in seconds, each the mean over ranks."""

    contender: str
    nbytes: int
    rounds_s: list[list[float]] = field(default_factory=list)
    note: str | None = None
    """What the contender said of itself, such as the algorithm that it chose."""


@dataclass
class Outcome:
    """All that one run on `ranks` ranks measured."""

    collective: str
    ranks: int
    contenders: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    triad_s: list[float] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def repeats_for(nbytes: int) -> tuple[int, int]:
    """(calls to warm up, calls that count) in a turn: more of the short ones."""
    return (1 if nbytes >= 64 * MIB else 3, max(1, min(20, 16 * MIB // nbytes)))


def rounds_for(nbytes: int, rounds: int) -> int:
    """All rounds up to 128 MiB, a third of them beyond, at least two."""
    return rounds if nbytes <= 128 * MIB else max(min(rounds, 2), rounds // 3)


def run_rounds(collective: str, ranks: int, sizes: Sequence[int], rounds: int, peers: Sequence[PeerJob]) -> Outcome:
    """Start all `peers`, measure every size, end them; says on standard error how far it is."""
    outcome = Outcome(collective, ranks)
    turns: dict[str, Job] = {}
    with running() as jobs:
        for peer in peers:  # one after another: some look at the machine when they start
            job = _start(peer, ranks)
            jobs.append(job)
            with _leaving_out(outcome, peer.name):
                job.wait_until_ready(START_LIMIT_S)
                outcome.settings[peer.name] = peer.describe()
                turns |= dict.fromkeys(job.hello["contenders"], job)
        outcome.contenders = [name for name in turns if name != TRIAD]
        for wanted in sizes:
            _measure_size(outcome, turns, rounded(wanted, ranks), rounds)
    return outcome


def _start(peer: PeerJob, ranks: int) -> Job:
    script = str(Path(__file__).parent / "peers" / peer.script)
    command = ["mpirun", *peer.launch, "-np", str(ranks), sys.executable, script, peer.name, *peer.words]
    return Job(peer.name, command, launch_environment(peer.env))


def _measure_size(outcome: Outcome, turns: dict[str, Job], nbytes: int, rounds: int) -> None:
    began = time.monotonic()
    message = {"collective": outcome.collective, "bytes": nbytes}
    measured = {}
    for name in [name for name in turns if name not in outcome.left_out and name != TRIAD]:
        with _leaving_out(outcome, name, turns[name]), turns[name].turn():
            note = _ask(turns[name], {"do": "check", "contender": name, **message})
            measured[name] = Measured(name, nbytes, note=note)
    warmup, repeats = repeats_for(nbytes)
    count = rounds_for(nbytes, rounds)
    for number in range(count):
        if TRIAD in turns and TRIAD not in outcome.left_out:
            _measure_triad(outcome, turns[TRIAD])
        order = [name for name in measured if name not in outcome.left_out]
        for name in order[number % max(1, len(order)) :] + order[: number % max(1, len(order))]:
            command = {"do": "time", "contender": name, "warmup": warmup, "repeats": repeats, **message}
            with _leaving_out(outcome, name, turns[name]), turns[name].turn():
                measured[name].rounds_s.append(_ask(turns[name], command))
    # One that failed midway has no fair place at this size.
    outcome.measured += [item for name, item in measured.items() if name not in outcome.left_out]
    print(f"{outcome.collective}, {outcome.ranks} ranks, {nbytes / KIB:.0f} KiB: {count} rounds in "
          f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)  # fmt: skip


def _measure_triad(outcome: Outcome, job: Job) -> None:
    smallest = {"collective": outcome.collective, "bytes": rounded(1, outcome.ranks)}
    with _leaving_out(outcome, TRIAD, job), job.turn():
        outcome.triad_s += _ask(job, {"do": "time", "contender": TRIAD, "warmup": 1, "repeats": 1, **smallest})


class _RefusedError(Exception):
    """All ranks of the job answered, and goes on, but this contender failed."""


def _ask(job: Job, command: dict[str, object]) -> Any:
    answer = job.ask(command, TURN_LIMIT_S)
    if "error" in answer:
        raise _RefusedError(answer["error"])
    return answer["answer"]


@contextlib.contextmanager
def _leaving_out(outcome: Outcome, contender: str, job: Job | None = None) -> Iterator[None]:
    """A failure in this context is said, and its contender takes no further part; nor do others of a job that ended."""
    try:
        yield
    except (_RefusedError, JobFailedError) as error:
        names = [contender]
        if isinstance(error, JobFailedError) and job is not None:
            names = list(job.hello["contenders"])
            job.end(patience_s=1)
        for name in names:
            outcome.left_out[name] = str(error)
        print(f"left out: {', '.join(names)}: {error}", file=sys.stderr, flush=True)
