"""How a step's gradients are brought together: the seam at which another library's optimizer could stand."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hvdkit.errors import HvdkitError
from hvdkit.optim.wrapped import RESIDUALS

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


class WeighedAggregation:
    """hvdkit's own: every token counts the same, wherever it was."""

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


class ShardedAggregation(WeighedAggregation):
    """The same with a model that is cut over the ranks."""

    def __init__(self, model: torch.nn.Module, optimizer: Any, stage: int) -> None:
        super().__init__(optimizer)
        self._model = model
        self.runs_together = stage == 3

    def gradients(self) -> list[tuple[str, torch.Tensor]]:
        """See `Aggregation`."""
        pieces: list[tuple[str, torch.Tensor]] = self.optimizer.held_gradients()
        return pieces

    def grad_norm(self) -> torch.Tensor:
        """See `Aggregation`."""
        norm: torch.Tensor = self.optimizer.grad_norm()
        return norm

    def skip(self) -> None:
        """See `Aggregation`."""
        self.optimizer.zero_grad()

    def state(self) -> tuple[State, State]:
        """See `Aggregation`."""
        from hvdkit.sharding import sharded_state_dict

        return {}, {"shard": sharded_state_dict(self._model, self.optimizer)}

    def restore(self, saved: SavedState) -> None:
        """See `Aggregation`."""
        from hvdkit.sharding import load_full_state_dict, load_sharded_state_dict

        if saved.ranks == saved.size and "shard" in saved.own(saved.rank):
            with suppress(HvdkitError):  # on all ranks, before anything was changed: another stage
                load_sharded_state_dict(self._model, self.optimizer, saved.own(saved.rank)["shard"])
                return
        whole = {"optimizer": saved.optimizer()} if saved.rank == 0 else None
        load_full_state_dict(self._model, self.optimizer, whole, only="optimizer")

    def whole(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        held: AbstractContextManager[None] = self.optimizer.whole_on(0)
        return held

    def replicated(self, model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
        """See `Aggregation`."""
        return [(name, p) for name, p in model.named_parameters() if not self.optimizer.is_cut(p)]

    def describe(self) -> list[str]:
        """See `Aggregation`."""
        return list(self.optimizer.describe())

    def summarise(self) -> list[str]:
        """See `Aggregation`."""
        return list(self.optimizer.summarise())


def norm_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The 2-norm, (), of all elements together, as `torch.nn.utils.clip_grad_norm_` takes it."""
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(list(gradients))
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms]))
    return norm
