"""The reference: gather everything on every rank, then reduce in rank order, in float64. Slow and obviously right."""

from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.collectives.interface import Done, ReduceOp, Work
from hvdkit.collectives.reduction import Reduction, reduction_for, starts_of
from hvdkit.runtime import gather_objects
from hvdkit.runtime.world import World


def reduce_in_order(parts: Sequence[torch.Tensor], reduction: Reduction) -> torch.Tensor:
    """The reduction of all ranks' values, in float64 for floating-point dtypes, returned in theirs."""
    dtype = parts[0].dtype
    wide = torch.float64 if dtype.is_floating_point else dtype
    stacked = torch.stack([part.to(wide) * reduction.factor(rank) if reduction.factors else part.to(wide)
                           for rank, part in enumerate(parts)])  # fmt: skip
    reduced = {
        "sum": lambda: stacked.sum(dim=0),
        "min": lambda: stacked.amin(dim=0),
        "max": lambda: stacked.amax(dim=0),
        "product": lambda: stacked.prod(dim=0),
    }[reduction.op]()
    if reduction.divisor != 1:
        reduced = reduced.to(dtype).div(reduction.divisor, rounding_mode="trunc")
    return reduced.to(dtype)


class NaiveAlgorithm:
    """An `Algorithm` over all ranks of `world`, by gathering; the oracle of the tests of every other."""

    name = "naive"

    def __init__(self, world: World) -> None:
        self._world = world

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`."""
        data.copy_(reduce_in_order(gather_objects(self._world, data.detach()), reduction))

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """See `Algorithm`."""
        work = data.clone()
        self.all_reduce(work, reduction)
        if self._world.rank == root:
            data.copy_(work)

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """See `Algorithm`."""
        work = data.clone()
        self.all_reduce(work, reduction)
        start = starts_of(counts)[self._world.rank]
        out.copy_(work[start : start + counts[self._world.rank]])

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`."""
        out.copy_(torch.cat(gather_objects(self._world, part.detach())))

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`."""
        data.copy_(gather_objects(self._world, data)[root])


class Naive:
    """The same as `Collectives`, which the optimizer asks for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._algorithm = NaiveAlgorithm(world)
        self.size = world.size
        self.index = world.rank

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        """See `Collectives`. Blocks; each rank sends p-1 times the bytes. `adasum` is not a plain reduction."""
        reduction = reduction_for(op, self.size, tensor.dtype)
        if prescale != 1.0:
            tensor.mul_(prescale)
        self._algorithm.all_reduce(tensor, reduction)
        return Done(tensor)

    def all_gather(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """See `Collectives`."""
        return torch.cat(gather_objects(self._world, tensor.detach()))

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """See `Collectives`."""
        return gather_objects(self._world, item)
