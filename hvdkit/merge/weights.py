"""Weights of submodels that nobody wrote down: from what runs recorded, over checkpoints, over the layers."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hvdkit.errors import MergeError
from hvdkit.untrusted import parse_json

METRICS_FILE = "metrics.jsonl"
_CHECKPOINT = re.compile(r"step-(\d+)")


def exponential_weights(count: int, decay: float) -> list[float]:
    """What `count` checkpoints weigh in average <- decay x average + (1 - decay) x next, from the first on: sum 1."""
    later = [(1 - decay) * decay ** (count - 1 - number) for number in range(1, count)]
    return [decay ** (count - 1), *later]


def recorded_weights(paths: Sequence[Path], weigh_by: str) -> list[float]:
    """Each run's weight by what its metrics.jsonl says last: `tokens` it was trained on, or exp(-loss) for its
    `validation_loss`, in nats (so that halving the perplexity doubles the weight), the best one's being 1.

    `paths` are run folders, or folders in them: of a checkpoint, what was known when it was made counts. Raises
    MergeError naming the run that recorded no such thing.
    """
    found = [_last(path, weigh_by) for path in paths]
    if weigh_by == "tokens":
        return found
    return [math.exp(min(found) - loss) for loss in found]


def at_depth(numbers: Sequence[float], depth: float) -> float:
    """The value at `depth`, 0 for the first layer and 1 for the last, of a gradient through `numbers`."""
    return float(np.interp(depth, np.linspace(0, 1, len(numbers)), numbers)) if len(numbers) > 1 else numbers[0]


def _last(path: Path, name: str) -> float:
    found = _CHECKPOINT.search(str(path))
    until = int(found[1]) if found else None
    for folder in (path, *path.absolute().parents[:3]):
        metrics = folder / METRICS_FILE
        if metrics.is_file():
            known = [value for step, value in _recorded(metrics, name) if until is None or step <= until]
            if known:
                return known[-1]
    raise MergeError(f"{path}: no {METRICS_FILE} of its run tells its {name}; give the weights in the recipe")


def _recorded(metrics: Path, name: str) -> Iterator[tuple[int, float]]:
    """Steps and values; a line that was being written when the run was killed is passed over."""
    for line in metrics.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            entry = parse_json(line)
            step, value = (entry.get("step"), entry.get(name)) if isinstance(entry, dict) else (None, None)
            if isinstance(step, int) and isinstance(value, int | float) and abs(value) < math.inf:
                yield step, float(value)
