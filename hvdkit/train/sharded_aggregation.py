"""Synchronous training of a model that is cut over the ranks: every token counts the same, wherever it was."""

from contextlib import AbstractContextManager, suppress
from typing import Any

import torch

from hvdkit.errors import HvdkitError
from hvdkit.sharding import load_full_state_dict, load_sharded_state_dict, sharded_state_dict
from hvdkit.train.aggregation import SavedState, State
from hvdkit.train.weighed_aggregation import WeighedAggregation


class ShardedAggregation(WeighedAggregation):
    """Wraps what `hvd.shard` made of `model` and its optimizer."""

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
        return {}, {"shard": sharded_state_dict(self._model, self.optimizer)}

    def restore(self, saved: SavedState) -> None:
        """See `Aggregation`."""
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
