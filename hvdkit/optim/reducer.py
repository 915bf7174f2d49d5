"""Aggregates the gradients of one optimizer over ranks, while backward still runs.

Each parameter has a hook that fires when its gradient is complete. In a step's last backward complete gradients are
sent at once (see `exchange`), and the rest when the outermost backward ends. Then all optimizers that took part in
that backward wait, none before the others have sent, since another rank may have met them in another order. A rank
on which no gradient came does the same in `step()`.
"""

import time
from collections.abc import Callable, Sequence

import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import HvdkitError
from hvdkit.optim.backward import at_end_of_backward
from hvdkit.optim.bucket_sums import Residuals
from hvdkit.optim.choose_exchange import AnExchange, MakeExchange, choose_exchange, overlap_of
from hvdkit.optim.hooks import GradientHook
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.plan import Observation, agree
from hvdkit.optim.weighting import Weighting, combine
from hvdkit.runtime import require_world


class Reducer:
    """Aggregates `parameters` (with `names`) over the ranks that `connect` returns collectives for.

    `connect` is called before each step; it returns None where there is nobody to aggregate with (Horovod not
    running, this rank outside the process set), and a new object after a restart of Horovod. `make_exchange` makes
    another kind of exchange than the two of this package; it is asked for before the first gradient, and for one rank
    too.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[torch.Tensor],
        options: ReducerOptions,
        connect: Callable[[], Collectives | None],
        make_exchange: MakeExchange | None = None,
    ) -> None:
        self.options = options
        self.passes = options.passes
        self.statistics = Statistics()
        self.weighting = Weighting(fixed=1.0 if options.weight is None else options.weight)
        self.is_paused = False
        self.is_aggregated = False
        self._connect = connect
        self._make_exchange = make_exchange
        self._collectives: Collectives | None = None
        self._exchange: AnExchange | None = None
        """None until the ranks have agreed on a plan, and again when it no longer holds."""
        self._residuals: Residuals = {}
        """What compression keeps, while there is no plan."""
        self._names = list(names)
        self._parameters = list(parameters)
        self._released: set[int] = set()
        self._hooks: dict[int, GradientHook] = {}
        self._last_factor = self._last_inverse = 1.0
        self._started_s = 0.0
        self._watch()
        self.restart()

    # -- the life of a step

    def restart(self) -> None:
        """Begin the next step: forget what this one accumulated. Not collective."""
        self._is_backward_running = False
        self._passes_done = 0
        self.is_aggregated = False
        self.weighting.restart()
        self._restart_backward()
        self._abandon()
        self._watch_if_changed()

    def _restart_backward(self) -> None:
        self._fires = [0] * len(self._parameters)
        self._order: list[int] = []

    def on_gradient(self, index: int) -> None:
        """A gradient of parameter `index` was accumulated into `.grad` by the backward that is running."""
        if self.is_aggregated:
            self._check_second_backward()
            self.is_aggregated = False
        if self.is_paused:
            return
        if not self._is_backward_running:
            self._begin_backward()
        self._fires[index] += 1
        if self._fires[index] == 1:
            self._order.append(index)
        if self._exchange is not None and self._passes_done + 1 >= self.passes:
            self._exchange.gradient_is_ready(index, self._fires[index])

    def _begin_backward(self) -> None:
        self._is_backward_running = True
        self._refresh()
        self._restart_backward()
        self.prepare()
        if not self.weighting.is_counting:
            self.weighting.ran_uncounted_backward = True
        at_end_of_backward(self._end_backward)

    @property
    def is_last_backward(self) -> bool:
        """Whether gradients are aggregated at the end of the backward that is running or comes next."""
        return not self.is_paused and self._passes_done + 1 >= self.passes

    @property
    def is_backward_running(self) -> bool:
        """Whether a gradient has come in a backward that has not ended."""
        return self._is_backward_running

    def have_fired(self, indices: Sequence[int]) -> bool:
        """Whether gradients of all these parameters have come in the backward that is running."""
        return self._is_backward_running and all(self._fires[index] for index in indices)

    def prepare(self) -> None:
        """Make the plan where it does not depend on a first backward. Collective then."""
        if self._make_exchange is not None and self._exchange is None:
            self._refresh()
            if self._collectives is not None:
                self._exchange = self._agree(self._collectives)

    def _end_backward(self) -> None:
        if not self._is_backward_running:  # already flushed by synchronize() or step()
            return
        self._is_backward_running = False
        self._passes_done += 1
        if self._passes_done >= self.passes:
            self._send()
            at_end_of_backward(self._finish)

    def flush(self) -> None:
        """Aggregate all gradients and write them into `.grad`. Collective."""
        self._send()
        self._finish()

    @torch.no_grad()
    def _send(self) -> None:
        self._started_s = time.perf_counter()
        self._is_backward_running = False
        self._refresh()
        self.prepare()
        if self._collectives is None or (self._collectives.size == 1 and self._make_exchange is None):
            return
        if self._exchange is None:
            self._exchange = self._agree(self._collectives)
        self._exchange.send_rest()

    @torch.no_grad()
    def _finish(self) -> None:
        if self._collectives is None or self.is_aggregated:
            return
        self._last_factor = 0.0 if self.weighting.is_silent else self.weighting.factor
        if self._exchange is None:
            self._scale_alone()
        else:
            plan_fits = self._exchange.finish()
            self._last_inverse = self._exchange.inverse
            if not plan_fits:
                self._residuals = self._exchange.residuals()
                self._exchange.close()
                self._exchange = None
        self._restart_backward()
        self._passes_done = 0
        self.weighting.restart()
        self.is_aggregated = True
        self.statistics.rounds += 1
        self.statistics.exposed_seconds += time.perf_counter() - self._started_s

    def average_loss(self, loss: torch.Tensor | float) -> torch.Tensor | float:
        """The ranks' losses combined as their gradients were in the last `flush()`; same bits everywhere."""
        if self._collectives is None:
            return loss
        value = float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss)
        mine = value * self._last_factor if self._last_factor else 0.0
        parts = self._collectives.all_gather(torch.tensor([mine], dtype=torch.float64), "hvdkit.optimizer.loss")
        combined = float(parts.sum()) * self._last_inverse
        return torch.full_like(loss, combined) if isinstance(loss, torch.Tensor) else combined

    def _agree(self, collectives: Collectives) -> AnExchange:
        seen = Observation(
            order=self._order,
            fires=self._fires,
            sparse=[p.grad is not None and p.grad.is_sparse and not self.options.sparse_as_dense
                    for p in self._parameters],
        )  # fmt: skip
        active = [kind is not None for kind in self._watched]
        agreed = agree(
            collectives, self._names, self._parameters, active, seen, self.weighting,
            overlap=overlap_of(self.options),
        )  # fmt: skip
        if self._make_exchange is not None:
            return self._make_exchange(
                collectives, agreed, self._parameters, self.options, self.weighting, self.statistics
            )
        return choose_exchange(
            collectives, agreed, self._parameters, self.options, self.weighting, self.statistics, self._residuals
        )

    def _scale_alone(self) -> None:
        fields = torch.tensor(self.weighting.encode(), dtype=torch.float64)
        divisor = combine(fields, self.weighting.fixed).divisor
        self._last_inverse = 1 / divisor if self.options.op == "average" else 1.0
        factor = self._last_factor * self._last_inverse
        if factor == 1.0:
            return
        for parameter, watched in zip(self._parameters, self._watched, strict=True):
            if parameter.grad is not None and watched is not None:
                parameter.grad = parameter.grad.mul_(factor) if factor else None

    def _check_second_backward(self) -> None:
        """Averages of averages add up right; other combinations of two aggregated passes would not."""
        if self.options.op == "average" and not self.weighting.is_counting:
            return
        alive = {id(reference()) for reference in self._exchange.written} if self._exchange else set()
        if any(p.grad is not None and id(p.grad) in alive for p in self._parameters):
            raise HvdkitError(
                "backward() ran again on gradients that are already aggregated, which has no meaning with "
                f"op={self.options.op!r} or weigh(): call step() or zero_grad() first, or accumulate with "
                "no_sync() or backward_passes_per_step"
            )

    @property
    def residuals(self) -> Residuals:
        """What compression has not sent yet, and what it goes on from, by the index of the parameter."""
        return self._residuals if self._exchange is None else self._exchange.residuals()

    @residuals.setter
    def residuals(self, residuals: Residuals) -> None:
        self._abandon(for_good=True)  # the next plan goes on from them
        self._residuals = residuals

    # -- which parameters, over which ranks

    def _refresh(self) -> None:
        collectives = self._connect()
        if collectives is not self._collectives:
            if collectives is None and self._collectives is not None and self._collectives.size > 1:
                require_world()  # going on alone would let the ranks part ways
            if self._exchange is not None:
                self._residuals = self._exchange.residuals()
            self._collectives, self._exchange = collectives, None
        self._watch_if_changed()

    def _abandon(self, for_good: bool = False) -> None:
        """Forget what is under way; after a restart of Horovod that has been lost anyway."""
        if self._exchange is not None and self._connect() is self._collectives:
            if for_good:
                self._exchange.close()
            else:
                self._exchange.abandon()
        if for_good and self._exchange is not None:
            self._residuals, self._exchange = self._exchange.residuals(), None

    def _kinds(self) -> list[tuple[torch.dtype, torch.device, torch.Size] | None]:
        """What the plan depends on, per parameter; None for one that is not trained here."""
        return [
            (p.dtype, p.device, p.shape) if p.requires_grad and index not in self._released else None
            for index, p in enumerate(self._parameters)
        ]

    def _watch_if_changed(self) -> None:
        """Follow parameters that were frozen, unfrozen, or moved to another dtype or device."""
        if self._watched != self._kinds():
            self._watch()

    def _watch(self) -> None:
        """Hook every parameter that needs a gradient, taking it over from an optimizer wrapped earlier."""
        for hook in self._hooks.values():
            hook.remove()
        self._watched = self._kinds()
        self._hooks = {
            index: GradientHook(self, index, self._parameters[index])
            for index, kind in enumerate(self._watched)
            if kind is not None
        }
        self._abandon(for_good=True)

    def set_parameters(self, names: Sequence[str], parameters: Sequence[torch.Tensor]) -> None:
        """Aggregate these parameters from now on."""
        self._names, self._parameters, self._released = list(names), list(parameters), set()
        self._watch()
        self.restart()

    def release(self, index: int) -> None:
        """Another reducer takes over parameter `index`."""
        self._released.add(index)
        self._hooks.pop(index).remove()
        if not self._hooks:
            self._abandon(for_good=True)

    def close(self) -> None:
        """Remove every hook; gradients stay local from now on."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}
        self._abandon(for_good=True)
