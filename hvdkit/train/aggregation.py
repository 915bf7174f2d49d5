"""How a step's gradients are brought together: the seam at which another library's optimizer could stand."""

from contextlib import nullcontext
from typing import Any, Protocol

import torch


class Aggregation(Protocol):
    """Wraps a torch optimizer; the loop calls these in this order in every step."""

    optimizer: torch.optim.Optimizer

    def backward(self, mean_loss: torch.Tensor, n_targets: int, *, is_last: bool) -> None:
        """Run backward on one micro-batch's mean loss; `is_last` tells the step's last one on this rank."""

    def finish(self) -> None:
        """After the last backward (or none): from here on `.grad` is the same on all ranks."""

    def step(self) -> None:
        """Step the optimizer with the gradients as they are."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, right for all ranks. Collective."""

    def cost(self) -> tuple[float, float]:
        """Bytes sent and seconds of exposed communication so far, of this rank."""


class WeighedAggregation:
    """hvdkit's own: every token counts the same, wherever it was."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def backward(self, mean_loss: torch.Tensor, n_targets: int, *, is_last: bool) -> None:
        """See `Aggregation`."""
        with nullcontext() if is_last else self.optimizer.no_sync():
            self.optimizer.weigh(mean_loss, n_targets).backward()

    def finish(self) -> None:
        """See `Aggregation`. Does something only on a rank that had nothing to do in this step."""
        self.optimizer.synchronize()

    def step(self) -> None:
        """See `Aggregation`."""
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """See `Aggregation`."""
        state: dict[str, Any] = self.optimizer.consolidated_state_dict()
        return state

    def cost(self) -> tuple[float, float]:
        """See `Aggregation`."""
        return self.optimizer.statistics.bytes_sent, self.optimizer.statistics.exposed_seconds
