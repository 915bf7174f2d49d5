"""The collectives that gradients are aggregated by: Horovod's engine or direct ones, anew after each restart."""

from collections.abc import Callable
from typing import Any

import torch

from hvdkit.collectives import Collectives, HorovodEngine, direct_collectives, why_no_direct
from hvdkit.runtime import World, current_world


class Connection:
    """Gives a reducer the collectives of the world that is current, a new one after each restart of Horovod."""

    def __init__(self, process_set: Any, strategy: str, parameters: Callable[[], list[torch.Tensor]]) -> None:
        self._process_set, self._strategy, self._parameters = process_set, strategy, parameters
        self._world: World | None = None
        self._collectives: Collectives | None = None

    def __call__(self) -> Collectives | None:
        world = current_world()
        if world is not self._world:
            self._world = world
            outside = self._process_set is not None and not self._process_set.included()
            self._collectives = None if world is None or outside else self._make(world)
        return self._collectives

    def _make(self, world: World) -> Collectives:
        if self._strategy == "horovod" or any(p.device.type != "cpu" for p in self._parameters()):
            return HorovodEngine(world, self._process_set)
        if why_no_direct(world) is not None:
            return HorovodEngine(world, self._process_set)
        return direct_collectives(world, self._process_set).with_strategy(self._strategy)
