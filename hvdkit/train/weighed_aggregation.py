"""Synchronous training with hvdkit's own optimizer: every token counts the same, wherever it was."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hvdkit.optim.wrapped import RESIDUALS
from hvdkit.train.aggregation import SavedState, State


class WeighedAggregation:
    """Wraps a `DistributedOptimizer`; what other aggregations of hvdkit do alike, they take from here."""

    runs_together = False

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def gradients_agree(self) -> bool:
        """See `Aggregation`."""
        return True

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

    def remember(self) -> None:
        """See `Aggregation`."""
        self.optimizer.remember_residuals()

    def gradients(self) -> list[tuple[str, torch.Tensor]]:
        """See `Aggregation`."""
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        named = zip(self.optimizer.parameter_names, parameters, strict=True)
        return [(name, parameter.grad) for name, parameter in named if parameter.grad is not None]

    def grad_norm(self) -> torch.Tensor:
        """See `Aggregation`."""
        return norm_of([gradient for _, gradient in self.gradients()])

    def scale(self, factor: float) -> None:
        """See `Aggregation`."""
        if gradients := [gradient for _, gradient in self.gradients()]:
            torch._foreach_mul_(gradients, factor)

    def step(self) -> None:
        """See `Aggregation`."""
        self.optimizer.step()

    def skip(self) -> None:
        """See `Aggregation`."""
        self.optimizer.zero_grad()
        self.optimizer.put_back_residuals()

    def reached(self, step: int) -> None:
        """See `Aggregation`."""

    def meetings(self) -> int | None:
        """See `Aggregation`."""
        return None

    def news(self) -> list[str]:
        """See `Aggregation`."""
        return []

    def state(self) -> tuple[State, State]:
        """See `Aggregation`. What compression has not sent is each rank's own."""
        state = self.optimizer.state_dict()
        residuals = state.pop(RESIDUALS, {})
        return {"optimizer": state}, {"residuals": residuals}

    def restore(self, saved: SavedState) -> None:
        """See `Aggregation`. On another number of ranks each has the mean of what was not sent: their sum stays."""
        state = saved.optimizer()
        if "optimizer" in saved.common:
            state = {**state, RESIDUALS: saved.residuals()}
        self.optimizer.load_state_dict(state)

    def whole(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        return nullcontext()

    def averaged(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        return nullcontext()

    def replicated(self, model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
        """See `Aggregation`."""
        return list(model.named_parameters())

    def describe(self) -> list[str]:
        """See `Aggregation`."""
        return []

    def summarise(self) -> list[str]:
        """See `Aggregation`."""
        return []

    def cost(self) -> tuple[float, float]:
        """See `Aggregation`."""
        return self.optimizer.statistics.bytes_sent, self.optimizer.statistics.exposed_seconds


def norm_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The 2-norm, (), of all elements together, as `torch.nn.utils.clip_grad_norm_` takes it."""
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(list(gradients))
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms]))
    return norm
