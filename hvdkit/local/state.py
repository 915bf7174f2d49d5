"""Where a rank stands in its rounds, how steps and exchanges change that, and how it is saved and restored.

It is all that a rank needs, beside its model and inner optimizer, to go on to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.local.clock import Clock
from hvdkit.local.exchange import Outcome, Report, norm
from hvdkit.local.fragments import Fragment
from hvdkit.local.meter import Meter
from hvdkit.local.outer import Outer
from hvdkit.local.under_way import UnderWay
from hvdkit.optim.compression import BucketCompression


class RoundsState:
    """The outer weights, what `sums` rounded off, the place in a round of `length` steps, and what was measured."""

    def __init__(
        self, fragments: Sequence[Fragment], outer: Outer, sums: Sequence[BucketCompression], length: int
    ) -> None:
        self.fragments, self.outer, self.sums = list(fragments), outer, list(sums)
        self.clock = Clock(len(fragments), length, length)
        self.meter = Meter(len(fragments))
        self.weights = [0.0] * len(fragments)
        """What this rank's steps since each fragment was synchronised last weigh in the mean."""
        self.counts: bool | None = None
        """Whether its steps are counted; None while it has made none."""
        self.shares: list[float] | None = None
        """Each rank's speed relative to the fastest, in tokens (or steps) per second; None while unknown."""
        self.under_way: UnderWay | None = None

    def add_step(self, tokens: float | None) -> None:
        """An inner step is done that weighs `tokens`, or 1 where they are not counted."""
        self.counts = tokens is not None
        work = 1.0 if tokens is None else tokens
        self.meter.step(work)
        self.weights = [weight + work for weight in self.weights]
        self.clock.tick()

    def report(self, number: int, distance: float, *, waits: bool, exchange: str) -> Report:
        """What to tell the others when fragment `number` is synchronised; the next work on it weighs from 0 on."""
        weight, self.weights[number] = self.weights[number], 0.0
        return Report(
            weight=weight, distance=distance, steps=self.clock.steps, step_s=self.meter.step_s, rate=self.meter.rate,
            synchronisation_s=sum(self.meter.exchange_s), waits=waits, exchange=exchange, counts=self.counts,
        )  # fmt: skip

    def step_outer(self, under_way: UnderWay, outcome: Outcome) -> None:
        """Step the outer weights of a fragment by what its exchange gave, if any rank had something to bring."""
        if not any(outcome.shares):
            return
        fragment = self.fragments[under_way.number]
        gradient = fragment.outer - outcome.mean if under_way.is_mean else outcome.mean
        self.meter.add(under_way.number, outcome, norm(gradient), norm(fragment.outer))
        if under_way.is_mean:
            fragment.outer.copy_(outcome.mean)
        else:
            self.outer.step(fragment, outcome.mean)
        if under_way.buffers is not None:
            under_way.buffers.write()

    def state_dict(self) -> dict[str, Any]:
        """All of it; see `Rounds.state_dict`. An exchange under way is waited for."""
        return {
            "outer": [fragment.outer for fragment in self.fragments],
            "outer_optimizer": self.outer.optimizer.state_dict(),
            "residuals": [sums.state_dict() for sums in self.sums],
            "clock": vars(self.clock).copy(),
            "meter": self.meter.state_dict(),
            "weights": list(self.weights),
            "shares": self.shares,
            "under_way": None if self.under_way is None else self.under_way.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], buffers: Sequence[torch.Tensor], *, outer_only: bool) -> None:
        """Go on from a `state_dict()`, with the model's `buffers`; with `outer_only` at the beginning of a round.

        Raises ValueError for a state of other parameters or fragments.
        """
        lengths = [len(outer) for outer in state["outer"]]
        if lengths != [fragment.outer.numel() for fragment in self.fragments]:
            raise ValueError(
                f"local updates: the state has fragments of {lengths} values, this model "
                f"{[fragment.outer.numel() for fragment in self.fragments]}; use the same model and fragments"
            )
        for fragment, outer in zip(self.fragments, state["outer"], strict=True):
            fragment.outer.copy_(outer)
        self.outer.optimizer.load_state_dict(state["outer_optimizer"])
        self.clock = Clock(**state["clock"])
        if outer_only:
            self.clock.own_length = self.clock.length
            self.clock.restart()
            return
        for sums, kept in zip(self.sums, state["residuals"], strict=True):
            sums.load_state_dict(kept)
        self.meter.load_state_dict(state["meter"])
        self.weights, self.shares, self.counts = list(state["weights"]), state["shares"], None
        self.under_way = None
        if state["under_way"] is not None:
            self.under_way = UnderWay.from_state(state["under_way"], buffers)
