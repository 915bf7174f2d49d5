"""NaN and infinity in a step's gradients: the run stops, leaves the step out, or goes on, alike on all ranks.

The norm of the aggregated gradients, which clipping takes anyway, tells of them: it is finite if and only if all
gradients are (or they are too large to be squared), and the same on every rank, so that nothing more is sent for a
step that is well. Gradients are clipped here too, since scaling by a norm that is not finite would hide which
parameters are affected. In a round of local updates gradients are each rank's own, and so is what it does about them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import torch

from hvdkit.errors import HvdkitError
from hvdkit.runtime import World, fail_job, gather_objects, launch_info
from hvdkit.train.aggregation import Aggregation

OnNonfinite = Literal["stop", "skip", "ignore"]
MOST_IN_A_ROW = 10
"""Steps left out one after another; one more stops the run."""
_NAMED = 3
_SAID_FIRST = 5


@dataclass
class GradientCheck:
    """Stands between a step's gradients and the optimizer."""

    world: World
    policy: OnNonfinite
    clip_norm: float
    skipped: int = 0
    """Steps that this rank left out."""
    news: list[str] = field(default_factory=list)
    """What to tell a person; whoever shows it clears it."""
    in_a_row: int = 0
    """Of them, those since the last step that was taken."""

    def begin_step(self, aggregation: Aggregation) -> None:
        """Before the step's first backward."""
        if self.policy == "skip":
            aggregation.remember()

    def admits(self, aggregation: Aggregation, step: int, loss: float) -> bool:
        """Clip the gradients; returns whether step number `step` (from 1) is to be taken with them. Collective.

        `loss` is this rank's. Raises HvdkitError on all ranks where the policy, or too many bad steps, stop the run.
        """
        if self.policy == "ignore" and not self.clip_norm:
            return True
        norm = aggregation.grad_norm()
        if self.policy == "ignore" or bool(torch.isfinite(norm)):
            self.in_a_row = 0
            if self.clip_norm:
                factor = float(self.clip_norm / (norm + 1e-6))
                if not factor >= 1.0:  # NaN, too
                    aggregation.scale(factor)
            return True
        what = self._describe(aggregation, float(norm), loss)
        self.in_a_row += 1
        if self.policy == "stop":
            self._stop(
                aggregation,
                f"step {step}: {what}. The weights are those of step {step - 1}. Lower --lr or --clip-norm, look at "
                "the data, or leave such steps out with --on-nonfinite skip",
            )
        if self.in_a_row > MOST_IN_A_ROW:
            self._stop(
                aggregation,
                f"step {step}: {what}, as in the {MOST_IN_A_ROW} steps before it, which were left out: go back to an "
                "earlier checkpoint with a lower --lr or --clip-norm",
            )
        self.skipped += 1
        if self.skipped <= _SAID_FIRST or self.skipped & (self.skipped - 1) == 0:  # then at 8, 16, 32, ...
            said_less = "; from now on not all are told" if self.skipped == _SAID_FIRST else ""
            self.news.append(f"step {step} is left out ({self.skipped} so far): {what}{said_less}")
        return False

    def _describe(self, aggregation: Aggregation, norm: float, loss: float) -> str:
        """What is wrong, from all ranks where gradients are the same on all."""
        mine = ([name for name, gradient in aggregation.gradients() if not _has_norm(gradient)], loss)
        # A rank on its own does not know when others meet the same.
        together = aggregation.gradients_agree and self.world.size > 1
        parts = gather_objects(self.world, mine) if together else [mine]
        names = list(dict.fromkeys(name for found, _ in parts for name in found))
        where = [rank for rank, (_, theirs) in enumerate(parts) if not math.isfinite(theirs)]
        losses = ""
        if where:
            numbers = ", ".join(map(str, where))
            losses = f", the loss is {parts[where[0]][1]}"
            if together:
                losses += f" on rank{'s' if len(where) > 1 else ''} {numbers} of {self.world.size}"
        return f"gradients are not finite (norm {norm}{losses}): {some(names) or 'none by itself, but their sum'}"

    def _stop(self, aggregation: Aggregation, text: str) -> NoReturn:
        error = HvdkitError(text)
        launch = launch_info()
        if launch.size > 1 and not (aggregation.gradients_agree and self.world.is_whole):
            fail_job(error, launch.rank, launch.size)  # the other ranks do not know of it
        raise error


def some(names: Sequence[str], most: int = _NAMED) -> str:
    """`a, b, c and 4 more parameters`."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def _has_norm(gradient: torch.Tensor) -> bool:
    return bool(torch.isfinite(torch.linalg.vector_norm(gradient)))
