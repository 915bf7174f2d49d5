"""How a step's gradients are brought together: the seam at which another library's optimizer could stand."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

State = dict[str, Any]


@dataclass(frozen=True)
class SavedState:
    """What the aggregation of a run saved, as rank `rank` of now `ranks` ranks sees it; `size` ranks saved it."""

    common: State
    own: Callable[[int], State]
    """Reads what that rank of theirs had."""
    size: int
    rank: int
    ranks: int

    def optimizer(self) -> State:
        """The state of the optimizer, as the plain one has it, of whatever saved it."""
        if "optimizer" in self.common:
            return dict(self.common["optimizer"])
        first = self.own(0)
        if "worker" in first:
            return dict(first["worker"]["inner"])
        from hvdkit.sharding import join_parts

        return dict(join_parts([self.own(rank)["shard"] for rank in range(self.size)])["optimizer"])

    def residuals(self) -> dict[int, dict[str, torch.Tensor]]:
        """What compression had not sent, of this rank, or the mean over those that saved where they were not as many.

        State beside errors is rank 0's.
        """
        if self.size == self.ranks:
            mine: dict[int, dict[str, torch.Tensor]] = self.own(self.rank).get("residuals", {})
            return mine
        mean: dict[int, dict[str, torch.Tensor]] = self.own(0).get("residuals", {})
        for rank in range(1, self.size):
            for index, kept in self.own(rank).get("residuals", {}).items():
                if "error" in kept:
                    mean[index]["error"] += kept["error"]
        for kept in mean.values():
            if "error" in kept:
                kept["error"] /= self.size
        return mean


class Aggregation(Protocol):
    """Wraps a torch optimizer; the loop calls these in this order in every step."""

    optimizer: torch.optim.Optimizer
    runs_together: bool
    """Whether all ranks must run the model equally often, those with nothing to do too."""

    @property
    def gradients_agree(self) -> bool:
        """Whether after `finish` the norm of the gradients is the same on all ranks."""

    @property
    def shares(self) -> Sequence[float] | None:
        """What part of the global batch each rank is to have, relative to the others; None for equal parts."""

    def backward(self, mean_loss: torch.Tensor, n_targets: int, *, is_last: bool) -> None:
        """Run backward on one micro-batch's mean loss; `is_last` tells the step's last one on this rank."""

    def finish(self) -> None:
        """After the last backward (or none): from here on `.grad` is the same on all ranks."""

    def remember(self) -> None:
        """Before the first backward of a step that may be left out: keep what `skip` puts back."""

    def gradients(self) -> list[tuple[str, torch.Tensor]]:
        """What this rank has of the aggregated gradients, with the parameters' names."""

    def grad_norm(self) -> torch.Tensor:
        """The 2-norm, (), of the aggregated gradients over the whole model. Collective."""

    def scale(self, factor: float) -> None:
        """Multiply the aggregated gradients by `factor`."""

    def step(self) -> None:
        """Step the optimizer with the gradients as they are."""

    def skip(self) -> None:
        """In place of `step`: weights and the optimizer's state stay as they are, as if this batch had not been."""

    def reached(self, step: int) -> None:
        """`step` steps of the run are done: called before the first step, and after each. Collective."""

    def meetings(self) -> int | None:
        """How often ranks have met since they began to train apart, the same on all; None where every step is one."""

    def news(self) -> list[str]:
        """What a user should know of it now, in lines, each told once."""

    def state(self) -> tuple[State, State]:
        """What a checkpoint keeps of it: what all ranks have alike, and what this one has. Tensors share memory."""

    def restore(self, saved: SavedState) -> None:
        """Go on from what any aggregation saved, on any number of ranks: to the bit on as many. Collective."""

    def whole(self) -> AbstractContextManager[None]:
        """Within it rank 0 may use the model alone, as one process does. Collective."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model is the one to evaluate, equal on all ranks."""

    def replicated(self, model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
        """The parameters of `model` that every rank has whole, and alike within `averaged()`, with their names."""

    def describe(self) -> list[str]:
        """What a user should know of it, in lines. Collective."""

    def summarise(self) -> list[str]:
        """What a user should know of it when training is over, in lines. Collective."""

    def cost(self) -> tuple[float, float]:
        """Bytes sent and seconds of exposed communication so far, of this rank."""
