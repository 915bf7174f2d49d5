"""The two methods of local updates that users name: Local SGD and DiLoCo."""

from typing import Any

import torch
from torch import nn

from hvdkit.local.checks import Level, Pace
from hvdkit.local.outer import diloco_optimizer
from hvdkit.local.rounds import Rounds
from hvdkit.local.schedule import Schedule


class DiLoCo(Rounds):
    """Each rank trains alone for `sync_every` steps; an outer optimizer steps with the mean of what they did.

    Within `with DiLoCo(...):` a training loop needs no change: each `inner.step()` counts, and those that end a round
    synchronise. Leaving it brings all ranks together, also those that had fewer steps than others; an exception does
    not: raised on one rank it must end the job (or be raised on all), since the others wait for that rank. At a
    synchronisation each rank sends what an all-reduce of the parameters does, once in `sync_every` steps.

    Sources: A. Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models",
    arXiv:2311.08105; the same, "Streaming DiLoCo with overlapping communication", arXiv:2501.18512.

    Args:
        model: on all ranks the same; every rank takes rank 0's values. Floating-point buffers that differ are
            averaged at the end of a round, others are rank 0's.
        inner: trains all parameters of `model` that require gradients (AdamW in the paper). Its state stays local. A
            `DistributedOptimizer` only within its `no_sync()`.
        outer: a new optimizer made for the same parameters; by default SGD with Nesterov momentum 0.9 and learning
            rate 0.7. It steps float32 (float64 for float64) copies of them.
        sync_every: inner steps per round: a number, a schedule by steps ("10@0,50@200"), "adaptive" (from measured
            drift and cost, "adaptive:min=16,max=256,drift=0.1,cost=0.05"), or a `Schedule`.
        fragments: parts of the model that are synchronised one after another within a round.
        overlap_steps: steps that a rank does while an exchange is under way.
        mixing: with an overlap, the share of its own weights that a rank keeps when the result comes.
        compression: of pseudo-gradients, with error feedback: "none", "bf16" (3/4 of float32's bytes), "int8", or any
            `Compression`.
        level: "all" for every rank by itself, "nodes" for nodes whose ranks average gradients in every step (needs
            `hvd.init(process_sets="dynamic")`), or a node's number for each rank.
        pace: "proportional" gives slow ranks fewer steps in a round, in proportion to the measured speed; each
            rank's work weighs as many steps as it did, or tokens (see `count`).
        strategy: what reduces, as in `DistributedOptimizer`.

    Raises ConfigError for arguments that cannot be, DivergenceError if ranks disagree on them or on the model, and, at
    a synchronisation, HvdkitError if a rank's weights are no longer finite, and DivergenceError if only some ranks
    `count`, or are at the exchange of another such object: on all ranks alike.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: torch.optim.Optimizer,
        outer: torch.optim.Optimizer | None = None,
        *,
        sync_every: int | str | Schedule = 50,
        fragments: int = 1,
        overlap_steps: int = 0,
        mixing: float = 0.5,
        compression: Any = "none",
        level: Level = "all",
        pace: Pace = "equal",
        strategy: str = "auto",
    ) -> None:
        super().__init__(
            model, inner, outer or diloco_optimizer(_parameters(inner)), sync_every=sync_every, fragments=fragments,
            overlap_steps=overlap_steps, mixing=mixing, compression=compression, level=level, pace=pace,
            strategy=strategy,
        )  # fmt: skip


class LocalSGD(Rounds):
    """Each rank trains alone for `sync_every` steps; then all take the weighted mean of their weights.

    Post-local SGD is this after some steps with `DistributedOptimizer`, within its `no_sync()`. Arguments, errors and
    what an exception on one rank must do are as for `DiLoCo`.

    Sources: S. Stich, "Local SGD Converges Fast and Communicates Little", arXiv:1805.09767; T. Lin et al., "Don't Use
    Large Mini-Batches, Use Local SGD", arXiv:1808.07217.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: torch.optim.Optimizer,
        *,
        sync_every: int | str | Schedule = 8,
        compression: Any = "none",
        level: Level = "all",
        pace: Pace = "equal",
        strategy: str = "auto",
    ) -> None:
        super().__init__(
            model, inner, torch.optim.SGD(_parameters(inner), lr=1.0), sync_every=sync_every, compression=compression,
            level=level, pace=pace, strategy=strategy,
        )  # fmt: skip


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
