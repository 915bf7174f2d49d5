"""Whether something grows: the slope of samples over time, pooled over the lives of processes.

Each process (an attempt's rank) has a level of its own, and what it does in its first `WARM_UP_S` does not count. One
slope is fitted to all of them by least squares: sum (t - mean_a t)(y - mean_a y) / sum (t - mean_a t)^2, with the means
over each process a. It is too large where it is above the bar by more than twice its standard error, so that a short
soak accuses nobody. Neighbouring samples are not independent, so that the error is taken from means over
`_TOGETHER_S`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.faults.samples import SUPERVISOR, Sample

WARM_UP_S = 60.0
_TOGETHER_S = 20.0
_FEWEST = 4
_MIB = 2**20
_HOUR_S = 3600.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """What may grow how much."""

    name: str
    unit: str
    value: Callable[[Sample], float]
    per_hour: float
    digits: int = 1


BARS = (
    Bar("memory of its own", "MiB", lambda sample: sample.own_bytes / _MIB, 16),
    Bar("resident memory (RSS)", "MiB", lambda sample: sample.rss_bytes / _MIB, 16),
    Bar("open files", "files", lambda sample: float(sample.open_files), 1),
    Bar("threads", "threads", lambda sample: float(sample.threads), 1),
    Bar("/dev/shm", "MiB", lambda sample: sample.shared_bytes / _MIB, 1),
)


@dataclass(frozen=True)
class Growth:
    """Of one thing in one kind of process."""

    bar: Bar
    level: float
    """The median of all samples after the warm-up."""
    per_hour: float
    error: float
    """Standard error of `per_hour`; infinite where there was too little to say."""

    @property
    def is_too_much(self) -> bool:
        """Whether it grows beyond doubt and beyond the bar."""
        return self.per_hour - 2 * self.error > self.bar.per_hour


def growths(samples: Iterable[Sample], *, warm_up_s: float = WARM_UP_S, supervisor: bool = False) -> list[Growth]:
    """Of everything that there is a bar for, in ranks or in the supervisor."""
    lives: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        if (sample.rank == SUPERVISOR) == supervisor:
            lives.setdefault((sample.attempt, sample.pid), []).append(sample)
    kept = []
    for life in lives.values():
        begun = min(sample.time_s for sample in life)
        kept.append([sample for sample in life if sample.time_s - begun >= warm_up_s])
    return [_growth(bar, kept) for bar in BARS]


def fit(lives: Sequence[Sequence[Point]]) -> tuple[float, float]:
    """The pooled slope of points (t, y), and its standard error."""
    spread = product = 0.0
    centred: list[Point] = []
    for life in lives:
        if len(life) < 2:
            continue
        mean_t, mean_y = (sum(column) / len(life) for column in zip(*life, strict=True))
        centred += [(t - mean_t, y - mean_y) for t, y in life]
    for t, y in centred:
        spread += t * t
        product += t * y
    used = sum(len(life) >= 2 for life in lives)
    freedom = len(centred) - used - 1
    if spread == 0 or freedom < _FEWEST - 2:
        return 0.0, math.inf
    slope = product / spread
    rest = sum((y - slope * t) ** 2 for t, y in centred)
    return slope, math.sqrt(rest / freedom / spread)


def _growth(bar: Bar, lives: Sequence[Sequence[Sample]]) -> Growth:
    points = [_means([(sample.time_s, bar.value(sample)) for sample in life]) for life in lives]
    slope, error = fit(points)
    values = sorted(bar.value(sample) for life in lives for sample in life)
    level = values[len(values) // 2] if values else math.nan
    return Growth(bar, level, slope * _HOUR_S, error * _HOUR_S)


def _means(points: Sequence[Point]) -> list[Point]:
    groups: dict[int, list[Point]] = {}
    for t, y in points:
        groups.setdefault(int(t // _TOGETHER_S), []).append((t, y))
    return [
        (sum(t for t, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups.values()
    ]  # fmt: skip
