"""What wrapping adds to an optimizer's class: aggregation before each step, and nothing else.

The optimizer object itself is kept and given a subclass of its own class, so state, defaults, hooks, schedulers
and every reference to it stay valid. (Horovod builds a new object by running the class's constructor again with the
parameter groups alone, which loses state and fails for constructors of another shape.)
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch

from hvdkit.optim.adasum import adasum_step
from hvdkit.optim.bucket_sums import Residuals
from hvdkit.optim.compression import average_errors
from hvdkit.optim.connection import Connection
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.reducer import Reducer
from hvdkit.runtime import current_world
from hvdkit.runtime.dropin.functions import broadcast_object

_OWN = ("_settings", "_connection", "_reducer", "_skips_synchronize", "_kept_residuals")
"""What wrapping puts on an optimizer."""

RESIDUALS = "compression"
"""The key of an optimizer's state_dict under which bucket compression keeps its state."""


@dataclass(frozen=True)
class Settings:
    """Everything that a pickled or copied optimizer needs to be wrapped again."""

    options: ReducerOptions
    names: tuple[str, ...]
    process_set: Any
    """Horovod's `ProcessSet`, or None for all ranks."""
    strategy: str = "auto"


def wrap(optimizer: torch.optim.Optimizer, settings: Settings) -> torch.optim.Optimizer:
    """Give `optimizer` the distributed subclass of its class, and a reducer; returns the same object."""
    if isinstance(optimizer, Distributed):
        optimizer._reducer.close()
        base = optimizer._base_class
    else:
        base = type(optimizer)
    # Adasum is an operation of Horovod's engine.
    strategy = "horovod" if settings.options.op == "adasum" else settings.strategy
    connection = Connection(settings.process_set, strategy, functools.partial(_parameters, optimizer))
    # Adasum combines parameters, not gradients: its gradients stay local.
    connect = (lambda: None) if settings.options.op == "adasum" else connection
    reducer = Reducer(settings.names, _parameters(optimizer), settings.options, connect)
    change_class(optimizer, base, Distributed, settings, connection, reducer)
    return optimizer


def unwrap(optimizer: torch.optim.Optimizer) -> None:
    """Undo `wrap`: the same object, of its own class again, without a reducer."""
    wrapped: Any = optimizer
    wrapped._reducer.close()
    for name in _OWN:
        delattr(wrapped, name)
    wrapped.__class__ = wrapped._base_class
    _rebind_scheduled_step(optimizer)


def change_class(
    optimizer: torch.optim.Optimizer, base: type[torch.optim.Optimizer], methods: "type[Distributed]",
    settings: Settings, connection: Connection, reducer: Reducer,
) -> None:  # fmt: skip
    """Make `optimizer`, of class `base`, one of a subclass that has the `methods` too."""
    subclass: Any = _distributed_class
    optimizer.__class__ = subclass(base, methods)
    _rebind_scheduled_step(optimizer)
    assert isinstance(optimizer, Distributed)
    optimizer._settings, optimizer._connection, optimizer._reducer = settings, connection, reducer
    optimizer._skips_synchronize = False
    optimizer._kept_residuals = {}


class Distributed:
    """The methods of every wrapped optimizer. Subclasses are made by `wrap` and name their `_base_class`."""

    _base_class: type[torch.optim.Optimizer]
    _settings: Settings
    _connection: Connection
    _reducer: Reducer
    _skips_synchronize: bool
    _kept_residuals: Residuals
    param_groups: list[dict[str, Any]]

    def synchronize(self) -> None:
        """Aggregate the gradients now, unless that has happened since the last backward. Collective.

        Gradients are aggregated when `backward()` returns, so this matters only on a rank that ran no backward in
        this step, or before `backward_passes_per_step` passes are complete.
        """
        if not self._reducer.is_aggregated and self._settings.options.op != "adasum":
            self._reducer.flush()

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Within it `step()` does not aggregate; valid and harmless after `synchronize()`, as in Horovod."""
        self._skips_synchronize = True
        try:
            yield
        finally:
            self._skips_synchronize = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it `backward()` accumulates local gradients; the first backward outside aggregates the sum.

        `step()` within it is local too, as with DDP; `step()` outside aggregates what no backward has.
        """
        before, self._reducer.is_paused = self._reducer.is_paused, True
        try:
            yield
        finally:
            self._reducer.is_paused = before

    def weigh(self, loss: torch.Tensor, count: float) -> torch.Tensor:
        """Count this micro-batch with weight `count` (valid tokens, say); returns the loss to run backward on.

        `loss` is the mean over the `count` items. After the step's last backward the gradient is
        sum_i count_i grad_i / sum_i count_i over all micro-batches of all ranks: exactly that of one process on
        the union of the batches. Every rank must use it in a step, or none; a rank with nothing to do counts 0 or
        runs no backward at all. Raises ValueError for a negative or infinite count.
        """
        return self._reducer.weighting.weigh(loss, count)

    @property
    def statistics(self) -> Statistics:
        """What aggregation cost this rank so far."""
        return self._reducer.statistics

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters, in the order of `param_groups`."""
        return self._settings.names

    def remember_residuals(self) -> None:
        """Keep what bucket compression has not sent yet, for `put_back_residuals`; costs a copy of it."""
        kept = self._reducer.residuals
        self._kept_residuals = {i: {key: value.clone() for key, value in one.items()} for i, one in kept.items()}

    @torch.no_grad()
    def put_back_residuals(self) -> None:
        """Have bucket compression forget the gradients of the steps since `remember_residuals()`."""
        for index, state in self._reducer.residuals.items():
            kept = self._kept_residuals.get(index, {})
            for key, value in state.items():
                if key in kept:
                    value.copy_(kept[key])
                else:
                    value.zero_()

    def set_backward_passes_per_step(self, passes: int) -> None:
        """As in Horovod: aggregate in every `passes`-th backward from now on."""
        if passes <= 0:
            raise ValueError("backward_passes_per_step must be > 0")
        self._settings = replace(self._settings, options=replace(self._settings.options, passes=passes))
        self._reducer.passes = passes

    @property
    def backward_passes_per_step(self) -> int:
        """As in Horovod."""
        return self._reducer.passes

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """As the wrapped optimizer's; the next backward begins a new step."""
        self._reducer.restart()
        super().zero_grad(*args, **kwargs)  # type: ignore[misc]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the wrapped optimizer's; the new parameters are aggregated too."""
        super().add_param_group(param_group)  # type: ignore[misc]
        if "_reducer" in vars(self):
            known = self._settings.names
            added = sum(len(group["params"]) for group in self.param_groups) - len(known)
            names = (*known, *(f"allreduce.noname.{len(self.param_groups) - 1}.{j}" for j in range(added)))
            self._settings = replace(self._settings, names=names)
            self._reducer.set_parameters(names, _parameters(self))

    def state_dict(self) -> dict[str, Any]:
        """As the wrapped optimizer's; with what bucket compression has not sent yet, which differs between ranks."""
        state: dict[str, Any] = super().state_dict()  # type: ignore[misc]
        if residuals := self._reducer.residuals:
            state[RESIDUALS] = residuals
        return state

    def consolidated_state_dict(self) -> dict[str, Any]:
        """`state_dict()` that is right for all ranks, so that one may save it for all. Collective.

        What bucket compression has not sent is averaged over ranks: nothing of it is lost, but a run that goes on from
        it differs in rounding from one that never stopped.
        """
        state = self.state_dict()
        collectives = self._connection()
        if RESIDUALS in state and collectives is not None:
            residuals = state[RESIDUALS]
            indices = sorted(residuals)
            averaged = average_errors([residuals[i] for i in indices], "hvdkit.optimizer.residuals", collectives)
            state[RESIDUALS] = dict(zip(indices, averaged, strict=True))
        return state

    def follow_compression(self, root_rank: int) -> None:
        """Go on compressing as rank `root_rank` does, for a world in which some ranks are new. Collective.

        What all ranks must have alike (PowerSGD's start Q) is taken from it; each rank keeps what it has not sent.
        """
        state = self.state_dict()
        mine = state.get(RESIDUALS, {})
        shared = {index: {key: kept for key, kept in of.items() if key != "error"} for index, of in mine.items()}
        shared = broadcast_object(shared, root_rank=root_rank, name="hvdkit.optimizer.compression")
        if mine or shared:
            errors = {index: {"error": of["error"]} for index, of in mine.items() if "error" in of}
            state[RESIDUALS] = {index: {**errors.get(index, {}), **of} for index, of in shared.items()}
            self.load_state_dict(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the wrapped optimizer's; an unfinished step is forgotten."""
        super().load_state_dict(state_dict)  # type: ignore[misc]
        self._reducer.residuals = copy.deepcopy(state_dict.get(RESIDUALS, {}))
        self._reducer.restart()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._base_class, self._settings, _plain_state(self))

    def _aggregated_step(self, step: Callable[..., Any], closure: Callable[[], Any] | None, kwargs: Any) -> Any:
        if self._settings.options.op == "adasum":
            return adasum_step(self, step, closure, None if self._reducer.is_paused else self._connection())
        is_local = self._reducer.is_paused
        if closure is not None and not is_local:
            closure = functools.partial(self._averaged_loss, closure)
        elif closure is None and not is_local and not self._skips_synchronize:
            self.synchronize()
        result = step(self, closure, **kwargs) if closure is not None else step(self, **kwargs)
        self._reducer.restart()
        return result

    def _averaged_loss(self, closure: Callable[[], Any]) -> Any:
        # A line search compares losses: ranks that compared their local ones would part ways and deadlock.
        loss = closure()
        self.synchronize()
        return loss if loss is None else self._reducer.average_loss(loss)


@functools.cache
def _distributed_class(base: Any, methods: type) -> type[torch.optim.Optimizer]:
    plain_step = base.step

    # wraps() also copies the mark by which torch knows that hooks run inside plain_step already.
    @functools.wraps(plain_step)
    def step(self: Any, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        return self._aggregated_step(plain_step, closure, kwargs)

    return type(base.__name__, (methods, base), {"step": step, "_base_class": base, "__doc__": base.__doc__})


def _restore(base: type[torch.optim.Optimizer], settings: Settings, state: dict[str, Any]) -> torch.optim.Optimizer:
    """Make a copied or unpickled optimizer; a plain one in a process where Horovod is not running."""
    optimizer = base.__new__(base)
    optimizer.__setstate__(state)
    return optimizer if current_world() is None else wrap(optimizer, settings)


def _plain_state(optimizer: Any) -> dict[str, Any]:
    own = {*_OWN, "step"}
    hooks = {name for name in vars(optimizer) if name.endswith("_hooks")}  # torch drops them too
    return {name: value for name, value in vars(optimizer).items() if name not in own | hooks}


def _rebind_scheduled_step(optimizer: Any) -> None:
    """A scheduler made before wrapping has put a wrapper of the plain step on the object: put one of ours there."""
    if "step" not in vars(optimizer):
        return
    scheduled = vars(optimizer).pop("step")
    step = type(optimizer).step

    @functools.wraps(step)
    def counted_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._opt_called = True
        if hasattr(self, "_step_count"):  # what schedulers look at before torch 2.4
            self._step_count += 1
        return step(self, *args, **kwargs)

    for mark in ("_wrapped_by_lr_sched", "_with_counter"):  # from torch 2.4 on, and before
        if hasattr(scheduled, mark):
            setattr(counted_step, mark, True)
    optimizer.step = MethodType(counted_step, optimizer)


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
