"""Merges a tensor whose submodels lie on different ranks: every element crosses the network once, in its own dtype.

The blocks are taken in groups of as many as there are ranks; of each group rank j merges the j-th, for which every rank
sends it that block of the submodels that it holds. Order statistics are found where the submodel is, and angles come
from Gram matrices that are summed over ranks (one more exchange of all blocks); of these only a few numbers travel.
The result has the bits that a merge on one rank has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hvdkit.merge.blocks import Block
from hvdkit.merge.combine import COMBINERS, Linear
from hvdkit.merge.lanes import Bytes, Lanes, typed
from hvdkit.merge.tensor import Read, TensorMerge
from hvdkit.runtime import World, gather_objects, raise_together, together

Group = Sequence[Block]
"""At most one block per rank: rank j's is number j."""

Deliver = Callable[[Group, torch.Tensor | None], None]
"""Takes the merged block of this rank, (n,) (None if the group has none for it, or a fault came up). Collective."""


@dataclass(frozen=True)
class Held:
    """Where the submodels of a tensor are."""

    ranks: Sequence[int]
    """(M,)"""
    dtypes: Sequence[torch.dtype]
    """(M,), in which they travel."""


def merge_exchanging(world: World, lanes: Lanes, merge: TensorMerge, held: Held, deliver: Deliver) -> None:
    """Merge the tensor of `merge`, whose `models` need to be readable only on the ranks that `held` names. Collective.

    The base must be readable on every rank. Raises on all ranks what went wrong on any, after the last block.
    """
    mine = [number for number, rank in enumerate(held.ranks) if rank == world.rank]
    found = together(world, lambda: dict(zip(mine, merge.magnitudes(mine), strict=True)))
    by_model = {number: values for part in gather_objects(world, found) for number, values in part.items()}
    blocks = merge.grid.blocks()
    groups = [blocks[first : first + world.size] for first in range(0, len(blocks), world.size)]
    post = _Post(world, lanes, merge.models, held)
    here = replace(merge, models=post.reads)
    combiner = COMBINERS[merge.settings.rule.combiner]
    gram = np.zeros((len(merge.models), len(merge.models)))
    if isinstance(combiner, Linear) and combiner.needs_gram:
        for group in groups:
            post.exchange(group)
            gram += here.gram(group[world.rank : world.rank + 1])
        gram = np.sum(gather_objects(world, gram), axis=0)
    magnitudes = [by_model[number] for number in range(len(merge.models))]
    fault: Exception | None = None
    for group in groups:
        post.exchange(group)
        merged: torch.Tensor | None = None
        try:
            mine_of_group = group[world.rank : world.rank + 1]
            merged = next((values for _, values in here.blocks(mine_of_group, magnitudes, gram)), None)
        except Exception as error:
            fault, merged = error, None
        deliver(group, merged)
    raise_together(world, post.fault or fault)


class _Post:
    """Brings each rank its block of every submodel, and lets it be read as if it were here."""

    def __init__(self, world: World, lanes: Lanes, models: Sequence[Read], held: Held) -> None:
        self._world, self._lanes, self._models, self._held = world, lanes, models, held
        self._received: list[torch.Tensor] = []
        self.fault: Exception | None = None
        """What could not be read here; zeros were sent instead."""
        self.reads = [self._reader(number) for number in range(len(models))]

    def exchange(self, group: Group) -> None:
        """One all-to-all of `group`."""
        rank, size = self._world.rank, self._world.size
        parts = [self._parts(group[other]) if other < len(group) else _NOTHING for other in range(size)]
        mine = group[rank].stop - group[rank].start if rank < len(group) else 0
        lengths = [
            sum(mine * self._held.dtypes[number].itemsize for number in self._of(other)) for other in range(size)
        ]
        self._received = [torch.empty(0)] * len(self._models)
        for other, data in enumerate(self._lanes.all_to_all(parts, lengths)):
            place = 0
            for number in self._of(other):
                dtype = self._held.dtypes[number]
                piece = data[place : place + mine * dtype.itemsize]
                place += len(piece)
                self._received[number] = typed(piece, dtype)

    def _of(self, rank: int) -> list[int]:
        return [number for number, holder in enumerate(self._held.ranks) if holder == rank]

    def _parts(self, block: Block) -> Bytes:
        parts = [self._read(number, block) for number in self._of(self._world.rank)]
        return np.concatenate(parts) if parts else _NOTHING

    def _read(self, number: int, block: Block) -> Bytes:
        dtype = self._held.dtypes[number]
        try:
            values = self._models[number](block.start, block.stop).to(dtype).contiguous().view(torch.uint8)
        except Exception as error:
            self.fault = self.fault or error
            return np.zeros((block.stop - block.start) * dtype.itemsize, dtype=np.uint8)
        copied: Bytes = values.numpy().copy()  # what was read is valid until the next reading
        return copied

    def _reader(self, number: int) -> Read:
        return lambda start, stop: self._received[number]


_NOTHING: Bytes = np.empty(0, dtype=np.uint8)
