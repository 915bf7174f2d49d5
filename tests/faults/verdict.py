"""Whether a case ended as it should: pure, from what was seen of it.

Survived: started again (by its supervisor, or by hand where the supervisor itself was struck or the job was told to
end) it came to the result of the run that nothing struck, to the bit. Ended cleanly: nobody restarts it, and it ended
with a status other than 0 and one message that names rank and cause; gone on with by hand it came to that result too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.modes import HANG_LIMIT_S, HANGS
from tests.faults.plan import CHECKPOINT_EVERY, ENDS_IN_75, Case

DEATH_LIMIT_S = 10.0
"""From the fault to the job's end."""
KILLED = -9
TOLD_TO_RESUME = 75

_CAUSES = {
    "SIGKILL": r"signal 9|status code -9|Killed",
    "SIGSEGV": r"signal 11|status code -11|Segmentation fault",
    "os._exit": r"[Ee]xit code:? *3|status code 3",
    "sys.exit": r"status 3|cannot be written: 3|[Ee]xit code:? *3|status code 3",
    "exception": r"planned",
    "memory": r"MemoryError|planned|[Cc]annot allocate|can't allocate",
    "disk full": r"No space left on device",
}


@dataclass(frozen=True)
class Evidence:
    """What was seen of a case."""

    statuses: Sequence[int | None]
    """Of the commands that were started one after another; None for one that did not end."""
    attempts: int
    """How often ranks were started."""
    seconds_to_end: Mapping[int, float]
    """By attempt: from the fault to the end of the attempt, where it struck."""
    steps: Sequence[tuple[int, int]]
    """(attempt, step) of each step that was begun."""
    differences: Sequence[str]
    """From the result of the run that nothing struck."""
    leftovers: Sequence[str]
    output: str = ""
    """Of the first command."""


@dataclass(frozen=True)
class Verdict:
    """`outcome` is `survived`, `ended cleanly` or `FAILED`."""

    outcome: str
    problems: list[str] = field(default_factory=list)
    seconds: float | None = None
    """To detect the fault, the longest."""
    steps_repeated: int = 0
    is_equal: bool = False


def judge(case: Case, seen: Evidence, *, slack: float = 1.0) -> Verdict:
    """The verdict; times may be `slack` times as long as the bars, on a machine that others use too."""
    repeated = len(seen.steps) - len({step for _, step in seen.steps})
    problems = [
        *_struck(case, seen),
        *_statuses(case, seen),
        *_times(case, seen, slack),
        *_losses_of_steps(case, seen),
        *(_message(case, seen.output) if not case.supervised else []),
        *seen.differences,
        *seen.leftovers,
    ]
    outcome = "survived" if case.supervised else "ended cleanly"
    longest = max(seen.seconds_to_end.values(), default=None)
    return Verdict("FAILED" if problems else outcome, problems, longest, repeated, not seen.differences)


def allowed_loss(case: Case, attempt: int) -> int:
    """Steps that may be begun again after the end of `attempt`."""
    fault = next((fault for fault in case.faults if fault.attempt == attempt), None)
    if fault is None or fault.kind in ENDS_IN_75:
        return 0
    flipped = any(other.kind == "bits flipped" and other.attempt == attempt + 1 for other in case.faults)
    # What is under way in the background is lost; bits flipped cost a checkpoint.
    return CHECKPOINT_EVERY * (1 + (case.mode == "async") + flipped)


def _struck(case: Case, seen: Evidence) -> list[str]:
    return [
        f"{fault.kind} never struck in attempt {fault.attempt}"
        for fault in case.faults
        if fault.attempt not in seen.seconds_to_end and fault.kind != "bits flipped"
    ]


def _statuses(case: Case, seen: Evidence) -> list[str]:
    kind = case.fault.kind
    if None in seen.statuses:
        return ["the job did not end"]
    if not case.supervised:
        good = len(seen.statuses) == 2 and seen.statuses[0] not in (0, TOLD_TO_RESUME) and seen.statuses[1] == 0
        return [] if good else [f"statuses {list(seen.statuses)}: the first should not be 0, the second should be"]
    wanted = [KILLED, 0] if kind == "SIGKILL supervisor" else [TOLD_TO_RESUME, 0] if kind in ENDS_IN_75 else [0]
    problems = [] if list(seen.statuses) == wanted else [f"statuses {list(seen.statuses)}, not {wanted}"]
    starts = 1 + len(case.faults) - (kind == "bits flipped")
    if seen.attempts != starts:
        problems.append(f"{seen.attempts} attempts, not {starts}")
    return problems


def _times(case: Case, seen: Evidence, slack: float) -> list[str]:
    problems = []
    for fault in case.faults:
        limit_s = (DEATH_LIMIT_S + (HANG_LIMIT_S if fault.kind in HANGS else 0)) * slack
        took_s = seen.seconds_to_end.get(fault.attempt, 0.0)
        # One that is told to end saves first, which takes as long as it takes.
        if took_s > limit_s and fault.kind not in ENDS_IN_75:
            problems.append(f"{took_s:.1f} s from {fault.kind} to the job's end, not {limit_s:.0f} at most")
    return problems


def _losses_of_steps(case: Case, seen: Evidence) -> list[str]:
    attempts: dict[int, list[int]] = {}
    for attempt, step in seen.steps:
        attempts.setdefault(attempt, []).append(step)
    problems = []
    for earlier, later in zip(sorted(attempts), sorted(attempts)[1:], strict=False):
        lost = max(attempts[earlier]) - min(attempts[later]) + 1
        allowed = max(allowed_loss(case, between) for between in range(earlier, later))
        if not 0 <= lost <= allowed:
            problems.append(
                f"attempt {earlier} came to step {max(attempts[earlier])}, attempt {later} began with step "
                f"{min(attempts[later])}: {lost} steps lost, 0 to {allowed} allowed"
            )
    return problems


def _message(case: Case, output: str) -> list[str]:
    fault = case.fault
    rank = rf"rank {fault.rank}\b|,{fault.rank}\]|Process {fault.rank} |\[{fault.rank}\]<stderr>"
    problems = []
    if not re.search(_CAUSES[fault.kind], output):
        problems.append(f"no message names the cause, {fault.kind}")
    # A disk that is full is so for all ranks.
    if fault.kind != "disk full" and not re.search(rank, output):
        problems.append(f"no message names rank {fault.rank}")
    messages = re.findall(r"^(?:\[[\d,]+\]<\w+>: ?)?(hvdkit: .*)", output, re.MULTILINE)
    if len(messages) > 1:
        problems.append(f"{len(messages)} messages instead of one: {messages}")
    return problems
