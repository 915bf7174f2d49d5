"""The reference: gather everything on every rank, then reduce in rank order, in float64. Slow and obviously right."""

from typing import Any

import torch

from hvdkit.collectives.interface import ReduceOp, Work
from hvdkit.runtime import gather_objects
from hvdkit.runtime.world import World


class Naive:
    """Collectives over all ranks of `world`, by gathering; the oracle of the tests of every other algorithm."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.size = world.size
        self.index = world.rank

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        """See `Collectives`. Blocks; each rank sends p-1 times the bytes. `adasum` is not a plain reduction."""
        wide = torch.float64 if tensor.is_floating_point() else tensor.dtype
        parts = torch.stack([part.to(wide) * prescale for part in gather_objects(self._world, tensor.detach())])
        reduced = {
            "sum": lambda: parts.sum(dim=0),
            "average": lambda: parts.sum(dim=0) / self.size,
            "min": lambda: parts.amin(dim=0),
            "max": lambda: parts.amax(dim=0),
            "product": lambda: parts.prod(dim=0),
        }
        if op not in reduced:
            raise ValueError(f"naive all-reduce: op={op!r} is not one of {sorted(reduced)}")
        tensor.copy_(reduced[op]())
        return _Done(tensor)

    def all_gather(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """See `Collectives`."""
        return torch.cat(gather_objects(self._world, tensor.detach()))

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """See `Collectives`."""
        return gather_objects(self._world, item)


class _Done:
    def __init__(self, result: torch.Tensor) -> None:
        self._result = result

    def wait(self) -> torch.Tensor:
        return self._result
