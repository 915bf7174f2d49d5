"""`hvdkit train` with a fault in it: `python -m tests.faults.victim FAULTS.json OPTION ...`, started once per rank.

FAULTS.json: {"faults": [{kind, point, rank, step, attempt}, ...], "records": FOLDER, "run": FOLDER, "seed": N,
"attempt": N}, at most one fault per attempt. It strikes once, on the rank that it names, when the run comes to its
point in its step or the next time after that. What happens is written to the records before it happens:
`struck-*.json` with the time, `steps.txt` with a line per step and attempt, of rank 0.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from hvdkit.runtime import launch_info
from tests.faults import points
from tests.faults.deeds import BALLAST, InjectedError, deed, runs_in_any_thread
from tests.faults.plan import ABOVE, SAVING

_PAUSE_S = 0.4

# Nobody looks at the picture of the losses, and it takes a second or more.
sys.modules["matplotlib"] = None  # type: ignore[assignment]


class Striker:
    """Waits for the moment of the fault."""

    def __init__(self, plan: dict[str, Any], fault: dict[str, Any], clock: points.Clock, *, is_mine: bool) -> None:
        self._fault, self._clock, self._is_mine, self._has_struck = fault, clock, is_mine, False
        self._deed = deed(fault["kind"], Path(plan["run"]), plan["seed"])
        self._record = Path(plan["records"]) / f"struck-{fault['attempt']}.json"

    def reach(self, point: str) -> None:
        """The run is at `point`, on this rank."""
        now = self._clock.saved_step if point in SAVING else self._clock.step
        needed = max(1, self._fault["step"]) if point == "collective" else self._fault["step"]
        if self._has_struck or now < needed or self._record.exists():
            return
        self._has_struck = True
        if self._is_mine and point == "collective" and runs_in_any_thread(self._fault["kind"]):
            points.soon(self._strike)
        elif self._is_mine:
            self._strike()
        elif point == "collective":
            time.sleep(points.LATE_S)

    def _strike(self) -> None:
        if self._fault["kind"] in ABOVE:
            self._clock.pause_s = _PAUSE_S
        write_whole(self._record, json.dumps({**self._fault, "struck_in": self._clock.step, "time": time.time()}))
        try:
            self._deed()
        except (InjectedError, MemoryError, SystemExit):
            raise
        except BaseException as problem:  # no fault, but one of these tests
            write_whole(self._record.with_name("failed.txt"), f"the fault could not be made: {problem!r}")
            raise


def write_whole(path: Path, text: str) -> None:
    """Complete or absent."""
    beside = path.with_suffix(".part")
    beside.write_text(text)
    beside.rename(path)


def note_survivors(records: Path, attempt: int) -> None:
    """Write down which ranks of the attempt before still live."""
    alive = []
    for path in records.glob(f"pid-{attempt - 1}-*.txt"):
        try:
            process = psutil.Process(int(path.read_text()))
            if str(records) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(f"rank {path.stem.rpartition('-')[2]}")
        except psutil.Error:
            continue
    if alive:
        write_whole(records / f"alive-{attempt}.txt", f"when attempt {attempt} started: {', '.join(alive)}")


def main() -> int:
    """Set the trap, and train."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    place, records = launch_info(), Path(plan["records"])
    attempt = max(plan["attempt"], place.attempt)
    if place.rank == 0 and attempt:
        (Path(plan["run"]) / BALLAST).unlink(missing_ok=True)
        note_survivors(records, attempt)
    write_whole(records / f"pid-{attempt}-{place.rank}.txt", str(os.getpid()))

    def note_step(step: int) -> None:
        if place.rank == 0:
            with (records / "steps.txt").open("a") as file:
                file.write(f"{attempt} {step}\n")

    clock = points.Clock(note_step)
    fault = next((fault for fault in plan["faults"] if fault["attempt"] == attempt), None)
    if fault is None:
        points.install("", lambda point: None, clock)
    else:
        striker = Striker(plan, fault, clock, is_mine=fault["rank"] == place.rank)
        if fault["point"] == "init":
            striker.reach("init")
        points.install(fault["point"], striker.reach, clock)
    from hvdkit.train.__main__ import main as train

    return train(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
