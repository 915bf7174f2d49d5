"""What a supervised job tells the user: whole lines on stderr, and the same as JSON lines in a file."""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hvdkit.contract import RESUME_STATUS
from hvdkit.launch.restarts import status_text
from hvdkit.launch.times import seconds


@dataclass
class Account:
    """Of the job `run_name`, whose first attempt has the number `first_attempt`. Attempts are counted from 0."""

    run_name: str
    first_attempt: int = 0
    log: Path | None = None
    """Gets a line per event: started, ended, restart, finished."""
    has_restarts: bool = True
    """Whether attempts are worth counting to a reader."""
    ends: list[str] = field(default_factory=list)
    ran_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print one line, in one write, since ranks write there too. A reader who is gone ends no job."""
        with suppress(OSError, ValueError, AttributeError):  # closed from the start: ValueError, or no object at all
            sys.stderr.write(f"hvdkit run: {text}\n")
            sys.stderr.flush()

    def note(self, event: str, **values: object) -> None:
        """Add an event to the log."""
        if self.log is not None:
            line = json.dumps({"time": round(time.time(), 3), "run": self.run_name, "event": event, **values})
            with suppress(OSError), self.log.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def ended(self, status: int, ran_s: float) -> str:
        """Take down an attempt's end; returns how to say it."""
        attempt = self.first_attempt + len(self.ends)
        self.note("ended", attempt=attempt, status=status, ran_s=round(ran_s, 3))
        self.ends.append(f"status {status_text(status)} after {seconds(ran_s)}")
        self.ran_s += ran_s
        return f"{f'attempt {attempt}' if self.has_restarts else 'the job'} ended with {self.ends[-1]}"

    def finish(self, status: int) -> int:
        """Sum up, unless there is nothing to say; returns `status`."""
        total_s = time.monotonic() - self.began_s
        self.note("finished", status=status, attempts=len(self.ends), total_s=round(total_s, 3))
        if len(self.ends) > 1:
            each = ", ".join(f"{self.first_attempt + number} {text}" for number, text in enumerate(self.ends))
            self.say(f"{len(self.ends)} attempts in {seconds(total_s)}, {seconds(total_s - self.ran_s)} of it between "
                     f"them: {each}")  # fmt: skip
        if status == RESUME_STATUS:
            self.say(f"saved, to be gone on with: the same command with --resume-run {self.run_name}")
        return status
