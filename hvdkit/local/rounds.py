"""Local updates: each rank trains by itself for a round of steps, then all take the mean of where they got.

In a round a rank does `sync_every` steps of its inner optimizer. The difference between the outer weights, which all
ranks share, and its own is its pseudo-gradient; the ranks' weighted mean of them is the gradient of one step of the
outer optimizer, and the new outer weights are where every rank goes on from. Of F fragments, one is synchronised every
1/F of a round; with an overlap the exchange runs beside the next steps, and the rank then keeps the share `mixing` of
its own weights: theta <- mixing * theta + (1 - mixing) * outer.

Exchanges come in one order on all ranks, one at a time, and what is decided is decided from what all ranks were told,
so ranks may do different numbers of steps: one that has none left takes part in the others' exchanges until all have
finished.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from hvdkit.local.buffers import Buffers
from hvdkit.local.checks import (
    Level,
    Pace,
    check_agreement,
    check_is_local,
    check_names,
    check_optimizers,
    check_options,
    next_number,
    trained_parameters,
)
from hvdkit.local.clock import Clock
from hvdkit.local.exchange import Report, exchange, norm
from hvdkit.local.fragments import Fragment, partition
from hvdkit.local.meter import Meter
from hvdkit.local.nodes import NodeSets, node_numbers
from hvdkit.local.outer import Outer
from hvdkit.local.pace import inner_steps, shares_of_work
from hvdkit.local.schedule import Measured, Schedule, parse_schedule
from hvdkit.local.statistics import Statistics
from hvdkit.local.sums import sum_by
from hvdkit.local.under_way import UnderWay
from hvdkit.optim import DistributedOptimizer
from hvdkit.optim.compression import NoneCompressor, resolve
from hvdkit.optim.connection import Connection
from hvdkit.optim.wrapped import unwrap
from hvdkit.runtime import require_world, together
from hvdkit.runtime.dropin.functions import broadcast_parameters

logger = logging.getLogger("hvdkit.local")
R = TypeVar("R", bound="Rounds")


class Rounds:
    """Local updates of `model` by `inner`, brought together by `outer`; see `DiLoCo` for the arguments.

    Making it is collective, and so are entering it and leaving it without an exception.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: torch.optim.Optimizer,
        outer: torch.optim.Optimizer,
        *,
        sync_every: int | str | Schedule,
        fragments: int = 1,
        overlap_steps: int = 0,
        mixing: float = 0.5,
        compression: Any = "none",
        level: Level = "all",
        pace: Pace = "equal",
        strategy: str = "auto",
    ) -> None:
        self._world = world = require_world()
        self._model, self._inner = model, inner
        self._overlap_steps, self._mixing, self._pace = overlap_steps, mixing, pace

        def prepare() -> list[tuple[str, torch.Tensor]]:
            check_optimizers(inner, outer)
            named = trained_parameters(model, inner)
            check_options(world, overlap_steps, mixing, level, pace)
            check_names(world, compression, strategy, named)
            self.schedule = parse_schedule(sync_every)
            parts = partition([name for name, _ in named], fragments)
            self._fragments = [Fragment([named[index][1] for index in part]) for part in parts]
            self._outer = Outer(outer, self._fragments)
            return named

        named = together(world, prepare)
        groups = [{k: v for k, v in group.items() if k != "params"} for group in outer.param_groups]
        check_agreement(world, named, {
            "sync_every": self.schedule, "fragments": fragments, "overlap_steps": overlap_steps, "mixing": mixing,
            "compression": resolve(compression), "level": level, "pace": pace, "strategy": strategy,
            "the outer optimizer": (type(outer).__name__, groups),
        })  # fmt: skip
        self._number = next_number(world)
        self._exchanges = 0
        self._named, self._level = named, level
        self._nodes: NodeSets | None = None
        if level != "all":
            self._nodes = NodeSets(world, node_numbers(world) if level == "nodes" else level)
        self._averages = False
        self._is_whole = resolve(compression) is NoneCompressor
        self._sums = [sum_by(resolve(compression), [p.shape for p in f.parameters], f.outer) for f in self._fragments]
        self._connect = Connection(None, strategy, lambda: [parameter for _, parameter in named])
        length = self.schedule.first(0)
        self._clock = Clock(fragments, length, length)
        self._meter = Meter(fragments)
        self._weights = [0.0] * fragments
        self._tokens: float | None = None
        self._counts: bool | None = None
        self._under_way: UnderWay | None = None
        self._hook: Any = None
        self._was_entered = False
        self.news: list[str] = []
        """Why rounds got another length, in sentences; whoever shows them clears them."""
        self.shares: list[float] | None = None
        """Each rank's speed relative to the fastest, in tokens (or steps) per second; None while unknown."""
        values = sum(fragment.outer.numel() for fragment in self._fragments)
        self.statistics = Statistics(world.size, values, named[0][1].element_size())

    # -- for users

    def __enter__(self: R) -> R:
        """Every rank takes rank 0's parameters and buffers; from now on each inner step counts. Collective.

        Raises ConfigError if the inner optimizer averages gradients over all ranks.
        """
        together(self._world, lambda: check_is_local(self._inner, self._level))
        broadcast_parameters(self._model.state_dict(), root_rank=0)
        for fragment in self._fragments:
            fragment.outer.copy_(fragment.own())
        node = None if self._nodes is None else self._nodes.make()
        if node is not None:
            DistributedOptimizer(self._inner, self._named, process_set=node)
            self._averages = True
        self._connect()  # which may measure the collectives
        self._hook = self._inner.register_step_post_hook(self._after_step)
        self._was_entered = True
        self._meter.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Bring all together a last time, unless an exception is on its way; nothing is left on the optimizer."""
        try:
            if kind is None:
                self.synchronize()
        finally:
            self._hook.remove()
            self._hook = None
            if self._averages:
                unwrap(self._inner)
                self._averages = False
        if kind is None and self._nodes is not None:
            self._nodes.remove()

    def _check_entered(self, what: str, *, or_left: bool = False) -> None:
        """Raise RuntimeError outside the context: entering it is what gives all ranks the same weights."""
        if self._hook is None and not (or_left and self._was_entered):
            raise RuntimeError(
                f"local updates: {what} needs the context: enter it first, as in `with DiLoCo(...) as diloco:`"
            )

    def count(self, tokens: float) -> None:
        """Let the next inner step weigh `tokens` (added up until then) in the mean; every step weighs 1 otherwise.

        Every rank must count, in every step, or none: else the next synchronisation raises DivergenceError. Raises
        ValueError for a negative or infinite number.
        """
        if not 0 <= tokens < float("inf"):
            raise ValueError(f"count: tokens={tokens} is not a weight; it must be a finite number, 0 or more")
        self._tokens = (self._tokens or 0.0) + tokens

    def synchronize(self) -> None:
        """Wait until all ranks are here, and bring all fragments together: then all hold the outer weights. Collective.

        Ranks may come after different numbers of steps: who waits takes part in what the others exchange. A new round
        begins. Raises RuntimeError outside the context.
        """
        self._check_entered("synchronize()")
        begun = time.perf_counter()
        if self._under_way is not None:
            self._finish(waits=True)
        swept = 0
        while swept < len(self._fragments):
            self._begin(waits=True)
            swept = swept + 1 if self._finish(waits=True) else 0
        self._clock.restart()
        self.statistics.waited_s += time.perf_counter() - begun
        self._meter.resume()

    @contextmanager
    def outer_model(self) -> Iterator[None]:
        """Within it the model has the outer weights, equal on all ranks, in place of this rank's own.

        Raises RuntimeError before the rounds' own context was entered.
        """
        self._check_entered("outer_model()", or_left=True)
        own = [fragment.own() for fragment in self._fragments]
        for fragment in self._fragments:
            fragment.take(fragment.outer)
        try:
            yield
        finally:
            for fragment, values in zip(self._fragments, own, strict=True):
                fragment.take(values)

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs, beside its model's and inner optimizer's state, to go on to the bit.

        "outer" and "outer_optimizer" are the same on all ranks. An exchange under way is waited for, and its result
        kept until it is due. Call it on all ranks after the same exchanges. Raises RuntimeError before the context was
        entered.
        """
        self._check_entered("state_dict()", or_left=True)
        return {
            "outer": [fragment.outer for fragment in self._fragments],
            "outer_optimizer": self._outer.optimizer.state_dict(),
            "residuals": [sums.state_dict() for sums in self._sums],
            "clock": vars(self._clock).copy(),
            "meter": self._meter.state_dict(),
            "weights": list(self._weights),
            "shares": self.shares,
            "under_way": None if self._under_way is None else self._under_way.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, outer_only: bool = False) -> None:
        """Go on from a `state_dict()`, within the context; with `outer_only` at the beginning of a round.

        Raises ValueError for a state of other parameters or fragments, RuntimeError outside the context.
        """
        self._check_entered("load_state_dict()")
        lengths = [len(outer) for outer in state["outer"]]
        if lengths != [fragment.outer.numel() for fragment in self._fragments]:
            raise ValueError(
                f"local updates: the state has fragments of {lengths} values, this model "
                f"{[fragment.outer.numel() for fragment in self._fragments]}; use the same model and fragments"
            )
        for fragment, outer in zip(self._fragments, state["outer"], strict=True):
            fragment.outer.copy_(outer)
        self._outer.optimizer.load_state_dict(state["outer_optimizer"])
        self._clock = Clock(**state["clock"])
        if outer_only:
            self._clock.own_length = self._clock.length
            self._clock.restart()
            return
        for sums, kept in zip(self._sums, state["residuals"], strict=True):
            sums.load_state_dict(kept)
        self._meter.load_state_dict(state["meter"])
        self._weights, self.shares, self._counts = list(state["weights"]), state["shares"], None
        self._under_way = None
        if state["under_way"] is not None:
            self._under_way = UnderWay.from_state(state["under_way"], list(self._model.buffers()))

    # -- one step, one exchange

    def _after_step(self, *_: Any) -> None:
        self._counts = self._tokens is not None
        work, self._tokens = (1.0, None) if self._tokens is None else (self._tokens, 0.0)
        self._meter.step(work)
        self._weights = [weight + work for weight in self._weights]
        self._clock.tick()
        self.statistics.steps += 1
        begun = time.perf_counter()
        if self._under_way is not None:
            self._under_way.steps_left -= 1
            if self._under_way.steps_left <= 0:
                self._finish()
        while self._clock.is_due:
            if self._under_way is not None:
                self._finish()  # which may change the length of the round, and so what is due
                continue
            self._begin()
            if not self._overlap_steps:
                self._finish()
        self.statistics.waited_s += time.perf_counter() - begun
        self._meter.resume()

    def _begin(self, waits: bool = False) -> None:
        """Start the exchange of the next fragment. Collective."""
        number = self._clock.fragment
        fragment, sums = self._fragments[number], self._sums[number]
        is_mean = self._is_whole and self._outer.is_mean
        flat = fragment.pseudo_gradient()
        distance = norm(flat)
        if is_mean:
            flat = fragment.own()
        ends_round = self._clock.advance()
        if ends_round:
            self._meter.end_round()
        self._exchanges += 1
        mine = Report(
            weight=self._weights[number], distance=distance, steps=self._clock.steps, step_s=self._meter.step_s,
            rate=self._meter.rate, synchronisation_s=sum(self._meter.exchange_s), waits=waits,
            exchange=f"exchange {self._exchanges} of {type(self).__name__} number {self._number}", counts=self._counts,
        )  # fmt: skip
        self._weights[number] = 0.0
        buffers = Buffers(list(self._model.buffers())) if ends_round else None
        collectives = self._connect()
        assert collectives is not None
        self._under_way = UnderWay(number, ends_round, is_mean, self._overlap_steps, buffers)
        # Exchanges that block come in one order, and by one name, so that ranks in different objects meet and are told.
        name = f"hvdkit.local.{self._number}" if self._overlap_steps else "hvdkit.local"
        self._under_way.start(
            lambda: exchange(flat, mine, sums, buffers, name, collectives),
            collectives if self._overlap_steps and not waits else None,
        )

    def _finish(self, waits: bool = False) -> bool:
        """Wait for the exchange under way and step the outer weights; returns whether all ranks wait."""
        assert self._under_way is not None
        under_way, self._under_way = self._under_way, None
        outcome = under_way.wait()
        fragment = self._fragments[under_way.number]
        if any(outcome.shares):
            gradient = fragment.outer - outcome.mean if under_way.is_mean else outcome.mean
            self._meter.add(under_way.number, outcome, norm(gradient), norm(fragment.outer))
            if under_way.is_mean:
                fragment.outer.copy_(outcome.mean)
            else:
                self._outer.step(fragment, outcome.mean)
            if under_way.buffers is not None:
                under_way.buffers.write()
        fragment.take(fragment.outer, keep=self._mixing if self._overlap_steps and not waits else 0.0)
        self.statistics.add(outcome, under_way.ends_round)
        all_wait = all(report.waits for report in outcome.reports)
        if under_way.ends_round and not all_wait:
            self._choose_length(outcome.reports)
        return all_wait

    def _choose_length(self, reports: Sequence[Report]) -> None:
        """Of the round that has begun; the same on all ranks."""
        measured = Measured(
            self._clock.length,
            self._meter.take_drift(),
            max(report.step_s for report in reports),
            max(report.synchronisation_s for report in reports),
        )
        length, why = self.schedule.following(max(report.steps for report in reports), measured)
        if why:
            self.news.append(f"step {max(report.steps for report in reports)}  rounds of {why}")
            logger.info("%s", self.news[-1])
        self._clock.length = self._clock.own_length = length
        self.shares = shares_of_work([report.rate for report in reports], self.shares)
        if self._pace == "proportional":
            self._clock.own_length = inner_steps(length, [report.step_s for report in reports])[self._world.rank]
