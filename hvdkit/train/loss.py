"""The loss of a batch, and its exact mean over all ranks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hvdkit.data import IGNORED, Batch, Samples, evaluation_indices
from hvdkit.models import LanguageModel
from hvdkit.runtime import World, gather_objects

_MOST_TOKENS = 4096
_MOST_LOGITS = 2**24
"""Of one evaluation batch: 64 MB in float32."""


@dataclass
class LossSum:
    """Summed loss (nats) and the number of targets it is over."""

    nats: float = 0.0
    targets: int = 0
    skipped: int = 0
    """Steps that were left out, of which the sum has nothing."""

    def add(self, mean_loss: torch.Tensor, targets: int) -> None:
        """Add a batch."""
        if targets:
            self.nats += float(mean_loss.detach()) * targets
            self.targets += targets

    def add_sum(self, other: "LossSum") -> None:
        """Add what another one is the sum of."""
        self.nats += other.nats
        self.targets += other.targets
        self.skipped += other.skipped

    def mean(self) -> float:
        """Nats per target; NaN over none."""
        return self.nats / self.targets if self.targets else float("nan")


def over_ranks(world: World, mine: LossSum) -> LossSum:
    """All ranks' sums together, the same bits on every rank. Collective."""
    parts = gather_objects(world, (mine.nats, mine.targets, mine.skipped))
    nats, targets, skipped = (sum(column) for column in zip(*parts, strict=True))
    return LossSum(nats, int(targets), int(skipped))


def mean_loss(model: torch.nn.Module, batch: Batch, autocast: bool = False) -> torch.Tensor:
    """Mean cross-entropy over the batch's targets: () of the logits' dtype (float32 under autocast)."""
    device = batch.inputs.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        logits = model(batch.inputs)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def evaluate(
    world: World, model: LanguageModel, samples: Samples, batch_size: int, *, batches: int = 0, autocast: bool = False,
    runs_together: bool = False, between: Callable[[], None] | None = None,
) -> LossSum:  # fmt: skip
    """The loss on the first `batches` * `batch_size` samples (0 for all), divided over ranks, exact. Collective.

    Without backward there is room for more samples at once than `batch_size`, and small batches would be slow. With
    `runs_together` every rank runs the model equally often, at the end perhaps for nothing. `between` is called after
    each batch, by all ranks together.
    """
    was_training = model.training
    model.eval()
    count = min(len(samples), batches * batch_size) if batches else len(samples)
    tokens_at_once = min(_MOST_TOKENS, _MOST_LOGITS // model.vocab_size)
    at_once = max(batch_size, tokens_at_once // samples.context)
    total, mine = LossSum(), iter(evaluation_indices(count, at_once, world.rank, world.size))
    most_rows = max(1, math.ceil(count / world.size))
    for _ in range(math.ceil(most_rows / at_once)):
        if (indices := next(mine, None)) is not None:
            batch = samples.batch(indices)
            total.add(mean_loss(model, batch.to(world.device), autocast), batch.n_targets)
        elif runs_together:
            mean_loss(model, samples.batch(np.zeros(1, dtype=np.int64)).to(world.device), autocast)
        if between is not None:
            between()
    model.train(was_training)
    return over_ranks(world, total)
