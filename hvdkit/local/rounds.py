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
from hvdkit.local.exchange import Report, exchange, norm
from hvdkit.local.fragments import Fragment, partition
from hvdkit.local.next_round import next_round
from hvdkit.local.nodes import NodeSets, node_numbers
from hvdkit.local.outer import Outer
from hvdkit.local.pace import shares_of_work
from hvdkit.local.schedule import Schedule, parse_schedule
from hvdkit.local.state import RoundsState
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

        def prepare() -> tuple[list[tuple[str, torch.Tensor]], list[Fragment], Outer]:
            check_optimizers(inner, outer)
            named = trained_parameters(model, inner)
            check_options(world, overlap_steps, mixing, level, pace)
            check_names(world, compression, strategy, named)
            self.schedule = parse_schedule(sync_every)
            members = partition([name for name, _ in named], fragments)
            parts = [Fragment([named[index][1] for index in indices]) for indices in members]
            return named, parts, Outer(outer, parts)

        named, parts, stepper = together(world, prepare)
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
        sums = [sum_by(resolve(compression), [p.shape for p in f.parameters], f.outer) for f in parts]
        self._connect = Connection(None, strategy, lambda: [parameter for _, parameter in named])
        self._state = RoundsState(parts, stepper, sums, self.schedule.first(0))
        self._tokens: float | None = None
        self._hook: Any = None
        self._was_entered = False
        self.news: list[str] = []
        """Why rounds got another length, in sentences; whoever shows them clears them."""
        self.statistics = Statistics(world.size, sum(p.numel() for _, p in named), named[0][1].element_size())

    # -- for users

    @property
    def shares(self) -> list[float] | None:
        """Each rank's speed relative to the fastest, in tokens (or steps) per second; None while unknown."""
        return self._state.shares

    def __enter__(self: R) -> R:
        """Every rank takes rank 0's parameters and buffers; from now on each inner step counts. Collective.

        Raises ConfigError if the inner optimizer averages gradients over all ranks.
        """
        together(self._world, lambda: check_is_local(self._inner, self._level))
        broadcast_parameters(self._model.state_dict(), root_rank=0)
        for fragment in self._state.fragments:
            fragment.outer.copy_(fragment.own())
        node = None if self._nodes is None else self._nodes.make()
        if node is not None:
            DistributedOptimizer(self._inner, self._named, process_set=node)
            self._averages = True
        self._connect()  # which may measure the collectives
        self._hook = self._inner.register_step_post_hook(self._after_step)
        self._was_entered = True
        self._state.meter.resume()
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
        if self._state.under_way is not None:
            self._finish(waits=True)
        swept = 0
        while swept < len(self._state.fragments):
            self._begin(waits=True)
            swept = swept + 1 if self._finish(waits=True) else 0
        self._state.clock.restart()
        self.statistics.waited_s += time.perf_counter() - begun
        self._state.meter.resume()

    @contextmanager
    def outer_model(self) -> Iterator[None]:
        """Within it the model has the outer weights, equal on all ranks, in place of this rank's own.

        Raises RuntimeError before the rounds' own context was entered.
        """
        self._check_entered("outer_model()", or_left=True)
        fragments = self._state.fragments
        own = [fragment.own() for fragment in fragments]
        for fragment in fragments:
            fragment.take(fragment.outer)
        try:
            yield
        finally:
            for fragment, values in zip(fragments, own, strict=True):
                fragment.take(values)

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs, beside its model's and inner optimizer's state, to go on to the bit.

        "outer" and "outer_optimizer" are the same on all ranks. An exchange under way is waited for, and its result
        kept until it is due. Call it on all ranks after the same exchanges. Raises RuntimeError before the context was
        entered.
        """
        self._check_entered("state_dict()", or_left=True)
        return self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, outer_only: bool = False) -> None:
        """Go on from a `state_dict()`, within the context; with `outer_only` at the beginning of a round.

        Raises ValueError for a state of other parameters or fragments, RuntimeError outside the context.
        """
        self._check_entered("load_state_dict()")
        self._state.load_state_dict(state, list(self._model.buffers()), outer_only=outer_only)

    # -- one step, one exchange

    def _after_step(self, *_: Any) -> None:
        state = self._state
        tokens, self._tokens = self._tokens, None if self._tokens is None else 0.0
        state.add_step(tokens)
        self.statistics.steps += 1
        begun = time.perf_counter()
        if state.under_way is not None:
            state.under_way.steps_left -= 1
            if state.under_way.steps_left <= 0:
                self._finish()
        while state.clock.is_due:
            if state.under_way is not None:
                self._finish()  # which may change the length of the round, and so what is due
                continue
            self._begin()
            if not self._overlap_steps:
                self._finish()
        self.statistics.waited_s += time.perf_counter() - begun
        state.meter.resume()

    def _begin(self, waits: bool = False) -> None:
        """Start the exchange of the next fragment. Collective."""
        state = self._state
        number = state.clock.fragment
        fragment, sums = state.fragments[number], state.sums[number]
        is_mean = self._is_whole and state.outer.is_mean
        flat = fragment.pseudo_gradient()
        distance = norm(flat)
        if is_mean:
            flat = fragment.own()
        ends_round = state.clock.advance()
        if ends_round:
            state.meter.end_round()
        self._exchanges += 1
        which = f"exchange {self._exchanges} of {type(self).__name__} number {self._number}"
        mine = state.report(number, distance, waits=waits, exchange=which)
        buffers = Buffers(list(self._model.buffers())) if ends_round else None
        collectives = self._connect()
        assert collectives is not None
        state.under_way = UnderWay(number, ends_round, is_mean, self._overlap_steps, buffers)
        # Exchanges that block come in one order, and by one name, so that ranks in different objects meet and are told.
        name = f"hvdkit.local.{self._number}" if self._overlap_steps else "hvdkit.local"
        state.under_way.start(
            lambda: exchange(flat, mine, sums, buffers, name, collectives),
            collectives if self._overlap_steps and not waits else None,
        )

    def _finish(self, waits: bool = False) -> bool:
        """Wait for the exchange under way and step the outer weights; returns whether all ranks wait."""
        state = self._state
        assert state.under_way is not None
        under_way, state.under_way = state.under_way, None
        outcome = under_way.wait()
        state.step_outer(under_way, outcome)
        fragment = state.fragments[under_way.number]
        fragment.take(fragment.outer, keep=self._mixing if self._overlap_steps and not waits else 0.0)
        self.statistics.add(outcome, under_way.ends_round)
        all_wait = all(report.waits for report in outcome.reports)
        if under_way.ends_round and not all_wait:
            self._choose_length(outcome.reports)
        return all_wait

    def _choose_length(self, reports: Sequence[Report]) -> None:
        """Of the round that has begun; the same on all ranks."""
        state, clock = self._state, self._state.clock
        chosen = next_round(self.schedule, self._pace, clock.length, state.meter.take_drift(), reports)
        if chosen.news:
            self.news.append(chosen.news)
            logger.info("%s", chosen.news)
        clock.length, clock.own_length = chosen.length, chosen.own_lengths[self._world.rank]
        state.shares = shares_of_work([report.rate for report in reports], state.shares)
