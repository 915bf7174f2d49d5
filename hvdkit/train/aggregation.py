"""How a step's gradients are brought together: the seam at which another library's optimizer could stand."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class Aggregation(Protocol):
    """Wraps a torch optimizer; the loop calls these in this order in every step."""

    optimizer: torch.optim.Optimizer
    runs_together: bool
    """Whether all ranks must run the model equally often, those with nothing to do too."""

    @property
    def shares(self) -> Sequence[float] | None:
        """What part of the global batch each rank is to have, relative to the others; None for equal parts."""

    def backward(self, mean_loss: torch.Tensor, n_targets: int, *, is_last: bool) -> None:
        """Run backward on one micro-batch's mean loss; `is_last` tells the step's last one on this rank."""

    def finish(self) -> None:
        """After the last backward (or none): from here on `.grad` is the same on all ranks."""

    def clip(self, max_norm: float) -> None:
        """Scale the aggregated gradients so that their norm over the whole model is at most `max_norm`. Collective."""

    def step(self) -> None:
        """Step the optimizer with the gradients as they are."""

    def reached(self, step: int) -> None:
        """`step` steps of the run are done: called before the first step, and after each. Collective."""

    def news(self) -> list[str]:
        """What a user should know of it now, in lines, each told once."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, right for all ranks. Collective."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave. Collective."""

    def whole(self) -> AbstractContextManager[None]:
        """Within it rank 0 may use the model alone, as one process does. Collective."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model is the one to evaluate, equal on all ranks."""

    def describe(self) -> list[str]:
        """What a user should know of it, in lines. Collective."""

    def summarise(self) -> list[str]:
        """What a user should know of it when training is over, in lines. Collective."""

    def cost(self) -> tuple[float, float]:
        """Bytes sent and seconds of exposed communication so far, of this rank."""


class WeighedAggregation:
    """hvdkit's own: every token counts the same, wherever it was."""

    runs_together = False

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def shares(self) -> Sequence[float] | None:
        """See `Aggregation`."""
        return None

    def backward(self, mean_loss: torch.Tensor, n_targets: int, *, is_last: bool) -> None:
        """See `Aggregation`."""
        with nullcontext() if is_last else self.optimizer.no_sync():
            self.optimizer.weigh(mean_loss, n_targets).backward()

    def finish(self) -> None:
        """See `Aggregation`. Does something only on a rank that had nothing to do in this step."""
        self.optimizer.synchronize()

    def clip(self, max_norm: float) -> None:
        """See `Aggregation`."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def step(self) -> None:
        """See `Aggregation`."""
        self.optimizer.step()

    def reached(self, step: int) -> None:
        """See `Aggregation`."""

    def news(self) -> list[str]:
        """See `Aggregation`."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """See `Aggregation`."""
        state: dict[str, Any] = self.optimizer.consolidated_state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Aggregation`."""
        self.optimizer.load_state_dict(state)

    def whole(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        return nullcontext()

    def averaged(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        return nullcontext()

    def describe(self) -> list[str]:
        """See `Aggregation`."""
        return []

    def summarise(self) -> list[str]:
        """See `Aggregation`."""
        return []

    def cost(self) -> tuple[float, float]:
        """See `Aggregation`."""
        return self.optimizer.statistics.bytes_sent, self.optimizer.statistics.exposed_seconds


class ShardedAggregation(WeighedAggregation):
    """The same with a model that is cut over the ranks."""

    def __init__(self, model: torch.nn.Module, optimizer: Any, stage: int) -> None:
        super().__init__(optimizer)
        self._model = model
        self.runs_together = stage == 3

    def clip(self, max_norm: float) -> None:
        """See `Aggregation`."""
        self.optimizer.clip_grad_norm_(max_norm)

    def state_dict(self) -> dict[str, Any]:
        """See `Aggregation`. On rank 0, which saves it; {} elsewhere."""
        from hvdkit.sharding import full_state_dict

        state: dict[str, Any] = full_state_dict(self._model, self.optimizer, only="optimizer").get("optimizer", {})
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Aggregation`."""
        from hvdkit.sharding import load_full_state_dict

        load_full_state_dict(self._model, self.optimizer, {"optimizer": state}, only="optimizer")

    def whole(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        held: AbstractContextManager[None] = self.optimizer.whole_on(0)
        return held

    def describe(self) -> list[str]:
        """See `Aggregation`."""
        return list(self.optimizer.describe())

    def summarise(self) -> list[str]:
        """See `Aggregation`."""
        return list(self.optimizer.summarise())
