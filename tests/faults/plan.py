"""Which faults strike which jobs: drawn by a seed, plain data, the same for the same seed.

Every pair of kind and point that makes sense comes once before any comes twice. How the job runs (ranks, launcher,
mode), the rank and the step are drawn. A step is one that is being computed, or that a checkpoint is saved of.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

STEPS = 20
CHECKPOINT_EVERY = 4

DEATHS = ("SIGKILL", "SIGSEGV", "os._exit")
ERRORS = ("exception", "sys.exit", "memory")
TOLD = ("SIGTERM", "SIGUSR1")
"""A rank is told to end: all save."""
ABOVE = ("SIGKILL launcher", "SIGKILL supervisor", "SIGTERM supervisor")
"""What was started above the ranks."""
ENDS_IN_75 = (*TOLD, "SIGTERM supervisor")
STARTED_AGAIN = (*ENDS_IN_75, "SIGKILL supervisor")
"""After these the job is started again by hand, under its name."""

SAVING = ("write", "commit", "publish", "prune")
"""While a part is written, between parts and manifest, between manifest and its name, while an older one is deleted."""
ON_RANK_0 = ("commit", "publish", "prune")
TRAINING = ("step", "backward", "collective")
POINTS = ("init", "setup", *TRAINING, *SAVING, "end", "resume")

_POINTS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(DEATHS, POINTS),
    **dict.fromkeys(ERRORS, POINTS),
    # Before MPI has started nobody can know of a rank that it hangs.
    "SIGSTOP": ("setup", *TRAINING, "write", "commit"),
    "disk full": ("write", "commit"),
    "bits flipped": ("init",),
    **dict.fromkeys(TOLD, (*TRAINING, "write")),
    **dict.fromkeys(ABOVE, (*TRAINING, "write")),
    "network cut": ("step", "collective"),
}
KINDS = tuple(_POINTS_OF)
PAIRS = tuple((kind, point) for kind, points in _POINTS_OF.items() for point in points)

MODES = ("plain", "sharding 1", "sharding 3", "diloco", "int8", "async")
GLOO_MODES = ("plain", "diloco", "async")
LAUNCHERS = ("mpirun", "horovodrun", "gloo")
BY_HAND_SHARE = 0.3
"""Of the faults that one process survives, how many strike a job that nobody restarts."""


@dataclass(frozen=True)
class Fault:
    """What strikes one rank, once."""

    kind: str
    point: str
    rank: int
    step: int
    attempt: int = 0


@dataclass(frozen=True)
class Case:
    """A job and what strikes it."""

    number: int
    faults: tuple[Fault, ...]
    mode: str
    launcher: str
    ranks: int
    supervised: bool = True
    """Otherwise the launcher is started without `hvdkit run --max-restarts`, and the run gone on with by hand."""
    two_hosts: bool = False
    seed: int = 0

    @property
    def fault(self) -> Fault:
        """The one that the case is about, the last."""
        return self.faults[-1]

    def title(self) -> str:
        """Such as `SIGKILL in backward, rank 1, step 7 (sharding 3, 3 ranks, mpirun)`."""
        fault = self.fault
        how = [self.mode, f"{self.ranks} ranks", self.launcher, *(["by hand"] if not self.supervised else [])]
        return f"{fault.kind} at {fault.point}, rank {fault.rank}, step {fault.step} ({', '.join(how)})"


def draw(count: int, seed: int, *, hosts: bool = True, disks: bool = True) -> list[Case]:
    """`count` cases; without `hosts` or `disks` none of those that need two hosts, or a small disk."""
    choose = random.Random(f"hvdkit chaos {seed}")
    left_out = {kind for kind, can in (("network cut", hosts), ("disk full", disks)) if not can}
    pairs = _pairs(choose, left_out)
    return [_case(number, *next(pairs), choose) for number in range(count)]


def case_from(content: dict[str, Any]) -> Case:
    """The inverse of `dataclasses.asdict`, from JSON."""
    return Case(**{**content, "faults": tuple(Fault(**fault) for fault in content["faults"])})


def as_json(cases: list[Case]) -> list[dict[str, Any]]:
    """For a file."""
    return [asdict(case) for case in cases]


def _pairs(choose: random.Random, left_out: set[str]) -> Iterator[tuple[str, str]]:
    while True:
        order = [pair for pair in PAIRS if pair[0] not in left_out]
        choose.shuffle(order)
        yield from order


def _case(number: int, kind: str, point: str, choose: random.Random) -> Case:
    modes = tuple(mode for mode in MODES if _makes_sense(kind, point, mode))
    mode = choose.choice(modes)
    two_hosts = kind == "network cut"
    launchers = LAUNCHERS if mode in GLOO_MODES and not two_hosts else LAUNCHERS[:2]
    launcher = choose.choice(launchers)
    ranks = 2 if launcher == "gloo" or two_hosts else choose.choice((2, 3))
    rank = 0 if point in ON_RANK_0 or kind == "bits flipped" else choose.randrange(ranks)
    if two_hosts:
        rank = 1
    if point in SAVING:
        # The first save deletes nothing, nor does the second: two are kept.
        step = choose.randrange(3 if point == "prune" else 1, STEPS // CHECKPOINT_EVERY) * CHECKPOINT_EVERY
    elif point in TRAINING:
        # What strikes above the ranks reaches them some steps later.
        step = choose.randrange(2, STEPS // 2 if kind in ABOVE else STEPS)
    else:
        step = 0
    fault = Fault(kind, point, rank, step)
    faults: tuple[Fault, ...] = (fault,)
    if point == "resume" or kind == "bits flipped":
        # Something must have ended the first attempt, when there was a checkpoint (two, if one is to be damaged).
        earliest = (2 if kind == "bits flipped" else 1) * CHECKPOINT_EVERY + 2
        first = Fault("SIGKILL", "step", choose.randrange(ranks), choose.randrange(earliest, STEPS))
        faults = (first, Fault(kind, point, rank, 0, attempt=1))
    # At the end there is nothing left to go on with.
    can_end = kind in (*DEATHS, *ERRORS, "disk full") and point != "end" and len(faults) == 1
    by_hand = can_end and choose.random() < BY_HAND_SHARE
    return Case(number, faults, mode, launcher, ranks, not by_hand, two_hosts, choose.randrange(2**31))


def _makes_sense(kind: str, point: str, mode: str) -> bool:
    if kind == "network cut":
        return mode == "async"  # by a ring, which adds up between hosts as it does on one
    # Nothing is written while training goes on there, nor do ranks meet in every step.
    return not (mode == "diloco" and kind == "SIGSTOP")
