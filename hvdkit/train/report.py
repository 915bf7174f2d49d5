"""What a person sees of a run: rank 0 talks, a bar on a terminal, whole lines in a pipe."""

import sys
import time
from typing import Any


class Reporter:
    """Prints for rank 0 and is silent on the others. Every line is one write, so that lines of ranks do not mix.

    `is_launched`: a launcher stands between this process and the person. It forwards whole lines (Open MPI through
    a pseudo-terminal of its own), so there is no bar then, whatever `isatty` says.
    """

    def __init__(self, speaks: bool, is_launched: bool, steps: int, first_step: int = 0) -> None:
        self._speaks = speaks
        self._bar: Any = None
        self._steps = steps
        self._started = time.perf_counter()
        self._first_step = first_step
        if speaks and not is_launched and sys.stdout.isatty() and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)

    def begin(self) -> None:
        """The first step comes now: time left is estimated from here on."""
        self._started = time.perf_counter()

    def say(self, text: str = "") -> None:
        """Print whole lines."""
        if not self._speaks:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def progress(self, done: int, advanced: int, loss: float, unit: str, tokens_per_s: float) -> None:
        """Tell how far the run is; `advanced` steps were made since the last call."""
        if not self._speaks:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s")
            self._bar.update(advanced)
            return
        elapsed = time.perf_counter() - self._started
        left_s = elapsed / max(1, done - self._first_step) * (self._steps - done)
        width = len(str(self._steps))
        speed = f"{tokens_per_s:,.0f} tokens/s"
        self.say(f"step {done:>{width}}/{self._steps}  loss {loss:.3f} {unit}  {speed}  {duration(left_s)} left")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def plural(count: int, noun: str) -> str:
    """`1 rank`, `8 ranks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(nbytes: float) -> str:
    """`1.5 GB`, `312 MB`, `4.2 kB`."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} bytes"
