"""Stage 3: each layer's parameters are gathered just before it runs and freed after, in forward and in backward.

A unit is a module with the parameters below it: each of the model's layers (the members of its lists and sequences),
and the model itself with all that belongs to no layer or to several. Hooks see a unit's forward begin and end; a hook
on what it returns sees its backward begin. The model's own parameters stay from forward to the end of backward.

Every rank must run the same units in the same order. Gradients of a layer are summed when the next unit's backward
begins, the one moment that all ranks reach in one order whatever gradients they have.

Where a core is free, or between nodes, the next unit's parameters are gathered on the thread for collectives
meanwhile: which comes next is known from the pass before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from hvdkit.collectives import Collectives, Work
from hvdkit.errors import HvdkitError
from hvdkit.optim.backward import at_end_of_backward
from hvdkit.optim.reducer import Reducer
from hvdkit.sharding.gradients import ShardedExchange
from hvdkit.sharding.shards import Shard
from hvdkit.sharding.storage import PartStorage


class Unit:
    """One module's shards, and the gather of them that may be under way."""

    def __init__(self, number: int, module: nn.Module, shards: Sequence[Shard]) -> None:
        self.number, self.module, self.shards = number, module, list(shards)
        self.under_way: Work | None = None
        self.is_lent = False
        """Whether its module can run: alike on all ranks, whatever memory is freed already."""

    @property
    def storages(self) -> list[PartStorage]:
        """Where the shards lie."""
        return [shard.storage for shard in self.shards if isinstance(shard.storage, PartStorage)]

    @property
    def trained(self) -> list[int]:
        """The indices of its trained parameters."""
        return [index for shard in self.shards if shard.flat.trains for index in shard.flat.indices]

    def free(self) -> None:
        """Give the memory back."""
        for storage in self.storages:
            storage.release()


class Layers:
    """Gathers and frees the units of `model`; the first is the model itself."""

    def __init__(
        self, model: nn.Module, units: Sequence[tuple[nn.Module, Sequence[Shard]]], collectives: Collectives, *,
        key: str, runs_ahead: bool,
    ) -> None:  # fmt: skip
        self._collectives, self._key, self._runs_ahead = collectives, key, runs_ahead
        self.units = [Unit(number, module, shards) for number, (module, shards) in enumerate(units)]
        self.exchange: ShardedExchange | None = None
        self.reducer: Reducer | None = None
        self._open: list[Unit] = []
        """Units whose backward has begun and whose gradients were not sent yet."""
        self._is_in_backward = self._is_held = False
        self._next: dict[tuple[bool, int], int] = {}
        """By whether it is backward, and a unit's number: the unit that came next the last time."""
        self._before: tuple[bool, int] | None = None
        self._last = -1
        """The unit that ran last before a backward pass, which begins with it."""
        for unit in self.units:
            unit.module.register_forward_pre_hook(self._before_forward(unit), prepend=True)
            unit.module.register_forward_hook(self._after_forward(unit))
        unit_of = {id(p): unit for unit in self.units for shard in unit.shards for p in shard.parameters}
        for module in model.modules():
            users = {unit_of[id(p)] for p in module.parameters(recurse=False)}
            if users - {unit for unit in self.units if unit.module is module}:
                module.register_forward_pre_hook(self._check(users))
            module.register_state_dict_pre_hook(self._refuse_state)
            module.register_load_state_dict_pre_hook(self._refuse_state)

    def _refuse_state(self, *_: Any) -> None:
        if not all(storage.is_whole for unit in self.units for storage in unit.storages):
            raise HvdkitError(
                "this model's weights are cut over the ranks: use hvd.full_state_dict(model, optimizer) and "
                "hvd.load_full_state_dict, or the sharded ones"
            )

    def _check(self, users: set[Unit]) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            for unit in users:
                if not unit.is_lent and not self._is_held:
                    raise HvdkitError(
                        f"a {type(module).__name__} runs while its weights are not gathered: call the model, or the "
                        f"{type(unit.module).__name__} that it belongs to, or name other layers= in hvd.shard()"
                    )

        return hook

    def _before_forward(self, unit: Unit) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if not self._is_held:
                self._gather(unit, is_backward=_is_in_backward())

        return hook

    def _after_forward(self, unit: Unit) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if self._is_held:
                return None
            is_watched = True
            if torch.is_grad_enabled():
                if any(output is given for given in args) and isinstance(output, torch.Tensor):
                    output = output.view_as(output)  # of its own, or its hook would be the layer's before
                is_watched = self._watch_backward(unit, output)
            elif unit.number == 0:
                self.release_all()
            begins_backward = torch.is_grad_enabled() and unit.number == self._last
            if unit.number and is_watched and not begins_backward and not _is_in_backward():
                self._release(unit)
            return output

        return hook

    def _watch_backward(self, unit: Unit, output: Any) -> bool:
        """Have `_begin_backward` called in every backward pass; False if there is no tensor to see that by."""
        task = -1

        def begin(gradient: torch.Tensor) -> None:
            nonlocal task
            now = torch._C._current_graph_task_id()
            if task != now:
                task = now
                self._begin_backward(unit)

        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        for leaf in leaves:
            if leaf.requires_grad:
                leaf.register_hook(begin)
        return bool(leaves)

    def _begin_backward(self, unit: Unit) -> None:
        if not self._is_in_backward:
            self._is_in_backward = True
            if self._before is not None:
                self._last = self._before[1]
            at_end_of_backward(self._end_backward)
        self._send_open(besides=unit)
        self._gather(unit, is_backward=True)
        if unit not in self._open:
            self._open.append(unit)

    def _send_open(self, besides: Unit) -> None:
        """The gradients of the layers whose backward is over."""
        done = [unit for unit in self._open if unit is not besides and unit.number]
        for unit in done:
            self._open.remove(unit)
            unit.is_lent = False
            if self.reducer is not None and self.reducer.have_fired(unit.trained):
                unit.free()  # otherwise a part of its backward may be still to come
            if self.reducer is not None and self.reducer.is_last_backward:
                self.reducer.prepare()
                assert self.exchange is not None
                self.exchange.send(unit.shards)

    def _end_backward(self) -> None:
        self.restart()
        self.release_all()
        if self.reducer is not None and not self.reducer.is_backward_running and self.exchange is not None:
            self.exchange.abandon()  # no gradient of a parameter came, as in `autograd.grad`

    def restart(self) -> None:
        """Forget a backward pass that may have ended in an exception."""
        self._is_in_backward = False
        self._open.clear()

    @torch.no_grad()
    def _gather(self, unit: Unit, *, is_backward: bool) -> None:
        key = (is_backward, unit.number)
        if self._before is not None and self._before[0] == is_backward and self._before[1] != unit.number:
            self._next[self._before] = unit.number
        self._before = key
        if not unit.is_lent:
            if unit.under_way is None:
                self._fill(unit)
            else:
                unit.under_way.wait()
                unit.under_way = None
            self._lend(unit)
        if self._runs_ahead and (following := self._next.get(key)) is not None:
            self._fill_ahead(self.units[following])

    def _fill(self, unit: Unit) -> None:
        for number, storage in enumerate(unit.storages):
            storage.fill(self._collectives, f"{self._key}.gather.{unit.number}.{number}")

    def _lend(self, unit: Unit) -> None:
        unit.is_lent = True
        for storage in unit.storages:
            storage.lend()

    def _fill_ahead(self, unit: Unit) -> None:
        if unit.is_lent or unit.under_way is not None:
            return

        def work() -> torch.Tensor:
            with torch.no_grad():
                self._fill(unit)
            return torch.empty(0)

        unit.under_way = self._collectives.start(work)

    def _release(self, unit: Unit) -> None:
        if unit.under_way is not None:
            unit.under_way.wait()
            unit.under_way = None
            self._lend(unit)
        unit.is_lent = False
        unit.free()

    def release_all(self) -> None:
        """Free all that is gathered. Not collective."""
        for unit in self.units:
            self._release(unit)
        self._before = None

    def hold_on(self, rank: int) -> None:
        """Lend all units on rank `rank`, where hooks rest until `hold_no_more`. Collective."""
        self.release_all()
        with torch.no_grad():
            for unit in self.units:
                self._fill(unit)
                self._lend(unit)
                if self._collectives.index != rank:
                    self._release(unit)
        self._is_held = True

    def hold_no_more(self) -> None:
        """Free what was held."""
        self._is_held = False
        self.release_all()


def find_layers(model: nn.Module) -> list[nn.Module]:
    """What is usually called a layer: the members of module lists and sequences, but for those within another one."""
    found: list[nn.Module] = []
    lists = (nn.ModuleList, nn.ModuleDict)  # which are never called themselves

    def look(module: nn.Module) -> None:
        for child in module.children():
            has_parameters = any(True for _ in child.parameters())
            if has_parameters and isinstance(module, (*lists, nn.Sequential)) and not isinstance(child, lists):
                found.append(child)
            else:
                look(child)

    look(model)
    return found


def check_layers(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Raise HvdkitError unless `layers` are modules of `model`, none within another."""
    inside = {id(module) for module in model.modules()} - {id(model)}
    for layer in layers:
        if id(layer) not in inside:
            raise HvdkitError(f"layers=: a {type(layer).__name__} among them is not a module within the model")
    below = {id(module) for layer in layers for module in layer.modules() if module is not layer}
    for layer in layers:
        if id(layer) in below:
            raise HvdkitError(f"layers=: a {type(layer).__name__} among them lies within another one")


def _is_in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)
