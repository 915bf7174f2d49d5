"""Learning rate: linear warm-up, then half a cosine (I. Loshchilov, F. Hutter, arXiv:1608.03983, without restarts)."""

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int, floor: float) -> float:
    """The rate of step `step` (0-based) of `steps`; it ends at `floor` times `peak`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
