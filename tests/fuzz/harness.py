"""Runs a reader on many inputs: only its documented errors may come out, soon, and without taking much memory.

`make test` gives each target DEFAULT_INPUTS, `make fuzz` sets HVDKIT_FUZZ_INPUTS. An input may take INPUT_LIMIT_S; the
address space may grow by GROWTH_LIMIT_BYTES while a target runs, and what it holds in memory by half of that.
"""

import contextlib
import faulthandler
import os
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

DEFAULT_INPUTS = 100
INPUTS = int(os.environ.get("HVDKIT_FUZZ_INPUTS", DEFAULT_INPUTS))
SEED = int(os.environ.get("HVDKIT_FUZZ_SEED", "0"))
INPUT_LIMIT_S = 10
GROWTH_LIMIT_BYTES = 1 << 30
_REPORT_EVERY_S = 10


class InputTookTooLong(BaseException):
    """No `except Exception` on the way may swallow it."""


def fuzz(
    name: str, inputs: st.SearchStrategy[Any], read: Callable[[Any], object], *documented: type[Exception]
) -> None:
    """Give `read` INPUTS of `inputs`; whatever it raises must be of `documented`. The same ones every time."""
    seen: Counter[str] = Counter()
    started = reported = time.monotonic()

    @seed(SEED)
    @settings(
        max_examples=INPUTS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(item: Any) -> None:
        nonlocal reported
        with _time_limit():
            try:
                read(item)
                seen["read"] += 1
            except documented as error:
                seen[type(error).__name__] += 1
            except InputTookTooLong as error:  # Hypothesis shows and shrinks inputs for an Exception only
                raise AssertionError(str(error)) from error
        if INPUTS > DEFAULT_INPUTS and time.monotonic() - reported > _REPORT_EVERY_S:
            reported = time.monotonic()
            print(f"  {name}: {seen.total():,} of {INPUTS:,}", file=sys.stderr, flush=True)

    with _memory_limit() as grown, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    line = ", ".join(f"{count:,} {kind}" for kind, count in seen.most_common())
    print(
        f"fuzz {name}: {seen.total():,} inputs ({line}), {time.monotonic() - started:.0f} s, "
        f"{grown()[0] / 2**20:.0f} MB peak, {grown()[1] / 2**20:.0f} MB more than before",
        file=sys.stderr,
        flush=True,
    )
    assert seen.total() >= INPUTS, f"{name}: the strategy has only {seen.total()} different inputs"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise InputTookTooLong(f"an input took more than {INPUT_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again, since an exception in a callback of the garbage collector or of C code is lost.
    rest, _ = signal.setitimer(signal.ITIMER_REAL, INPUT_LIMIT_S, 0.5)
    # Code that never returns to Python gets no signal: then the whole process ends, saying where.
    faulthandler.dump_traceback_later(3 * INPUT_LIMIT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if rest:  # the time limit of the test itself
            signal.setitimer(signal.ITIMER_REAL, rest)


@contextlib.contextmanager
def _memory_limit() -> Iterator[Callable[[], tuple[int, int]]]:
    """Yields a function that gives the peak of memory and by how much that is more than before, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _status("VmSize") + GROWTH_LIMIT_BYTES
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")

    def grown() -> tuple[int, int]:
        return _status("VmHWM"), _status("VmHWM") - before

    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield grown
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert grown()[1] < GROWTH_LIMIT_BYTES // 2, f"{grown()[1] / 2**20:.0f} MB more in memory than before"


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
