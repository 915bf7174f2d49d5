"""Collectives between ranks of one node through shared memory, in cache-sized blocks.

All-reduce: each rank owns 1/p of every block. It copies the other owners' parts into its slot; after a barrier each
owner adds its part of all slots to its own and writes the sum over each of them, and after another everyone copies the
sums back. A value is read from memory once and written once; everything between happens in cache. See `window` for
who may write when, and why a sum is written once for every rank that reads it.

Source: the block-wise shared-memory reductions of R. L. Graham, G. Shipman, "MPI Support for Multi-core Architectures:
Optimized Shared Memory Collectives", EuroPVM/MPI 2008. Rejected: a third set of slots to save one barrier of two
(slower: three sets do not fit the cache), process_vm_readv (the kernel's copies are slower than two of our own).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.reduction import Reduction, split_evenly, starts_of, wide_dtype
from hvdkit.collectives.window import CACHE_LINE, Window, take

_SLOT_BYTES = 2 * 2**20
_LARGEST_WINDOW_BYTES = 256 * 2**20


def slot_bytes_for(ranks: int) -> int:
    """Bytes of a slot on a node of `ranks` ranks: 2 MB (the best of 0.5 to 8 at 2 and 4 ranks), less for very many."""
    slot_bytes = min(_SLOT_BYTES, _LARGEST_WINDOW_BYTES // (2 * ranks))
    return max(ranks, slot_bytes // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True)
class Block:
    """A block of a rank's values, the slots it passes through, and which part of it each rank of the node owns."""

    values: torch.Tensor
    slots: list[torch.Tensor]
    bounds: list[tuple[int, int]]


class SharedMemory:
    """See the module. `group` must lie on one node; the window is shared with nobody else."""

    name = "shared_memory"

    def __init__(self, group: Group, slot_bytes: int | None = None) -> None:
        self._window = Window(group.mpi, group.node, slot_bytes or slot_bytes_for(group.node_size))
        self._size, self._index = group.node_size, group.node_index
        self._others = [rank for rank in range(self._size) if rank != self._index]

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`. Moves 2(p-1)/p of the bytes between caches per rank."""
        for block in self.blocks(data):
            self.contribute(block, reduction)
            self._window.barrier()
            total = self.reduce_own(block, reduction)
            reduction.finish(total)
            self.publish(block, total)
            self._window.barrier()
            self.collect(block)

    # -- the parts of it, which `hierarchical` puts together with work between nodes

    def blocks(self, data: torch.Tensor, owners: int | None = None) -> Iterator["Block"]:
        """Cut `data` into blocks of a slot each; the first `owners` ranks own parts (default: all)."""
        itemsize = data.element_size()
        owners = owners or self._size
        for values in data.split(self._window.slot_bytes // itemsize):
            if count := values.numel():
                bounds = split_evenly(count, owners, CACHE_LINE // itemsize)
                bounds += [(count, count)] * (self._size - owners)
                yield Block(values, self._window.next_slots(data.dtype), bounds)

    def contribute(self, block: "Block", reduction: Reduction) -> None:
        """Copy the other owners' parts of `block` into this rank's slot, times this rank's factor."""
        mine, (first, last) = block.slots[self._index], block.bounds[self._index]
        for start, stop in ((0, first), (last, block.values.numel())):
            self._copy_scaled(block.values[start:stop], mine[start:stop], reduction)

    def _copy_scaled(self, source: torch.Tensor, target: torch.Tensor, reduction: Reduction) -> None:
        factor = reduction.factor(self._index)
        if not source.numel():
            return
        if factor == 1.0 or wide_dtype(source.dtype) != source.dtype:  # 16-bit values: the owner scales in float32
            target.copy_(source)
        else:
            torch.mul(source, factor, out=target)

    def reduce_own(self, block: "Block", reduction: Reduction) -> torch.Tensor:
        """Combine this rank's part over all ranks; returns the result, not yet `finish`ed, for `publish`.

        That is the part itself of `block.values`, reduced in place, but a float32 copy where values have 16 bits.
        """
        start, stop = block.bounds[self._index]
        mine, factor = block.values[start:stop], reduction.factor(self._index)
        if start == stop:
            return mine
        parts = [block.slots[rank][start:stop] for rank in self._others]
        if wide_dtype(mine.dtype) != mine.dtype:
            return self._reduce_wide(mine, parts, reduction)
        if not parts:
            return mine.mul_(factor) if factor != 1.0 else mine
        if reduction.op == "sum":
            torch.add(parts[0], mine, alpha=factor if factor != 1.0 else 1, out=mine)
        else:
            reduction.combine(parts[0], mine, out=mine)
        for part in parts[1:]:
            reduction.combine(mine, part, out=mine)
        return mine

    def _reduce_wide(self, mine: torch.Tensor, parts: list[torch.Tensor], reduction: Reduction) -> torch.Tensor:
        total = mine.to(wide_dtype(mine.dtype))
        if reduction.factor(self._index) != 1.0:
            total.mul_(reduction.factor(self._index))
        for rank, part in zip(self._others, parts, strict=True):
            if reduction.op == "sum":
                total.add_(part, alpha=reduction.factor(rank))
            else:
                reduction.combine(total, part.to(total.dtype), out=total)
        return total

    def publish(self, block: "Block", total: torch.Tensor) -> None:
        """Put the result of this rank's part into `block`, and over what each other rank contributed to it."""
        start, stop = block.bounds[self._index]
        if start == stop:
            return
        mine = block.values[start:stop]
        if mine.data_ptr() != total.data_ptr():
            mine.copy_(total)
        for rank in self._others:
            block.slots[rank][start:stop].copy_(mine)

    def collect(self, block: "Block") -> None:
        """Copy the other owners' results into `block`."""
        slot, (first, last) = block.slots[self._index], block.bounds[self._index]
        for start, stop in ((0, first), (last, block.values.numel())):
            if stop > start:
                block.values[start:stop].copy_(slot[start:stop])

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """See `Algorithm`. Writes (p-1)/p of the bytes into shared memory per rank, and reads as many."""
        starts = starts_of(counts)
        piece = self._window.slot_bytes // self._size // CACHE_LINE * CACHE_LINE // data.element_size()
        for first in range(0, max(counts), piece):
            slots = self._window.next_slots(data.dtype)
            lengths = [max(0, min(piece, count - first)) for count in counts]
            begins = [start + first for start in starts]
            for owner in self._others:
                place = slots[self._index][owner * piece :][: lengths[owner]]
                self._copy_scaled(data[begins[owner] : begins[owner] + lengths[owner]], place, reduction)
            self._window.barrier()
            length, begin = lengths[self._index], begins[self._index]
            mine = out[first : first + length]
            mine.copy_(data[begin : begin + length])
            placed = [slot[self._index * piece :][:length] for slot in slots]
            bounds = [(0, length) if rank == self._index else (length, length) for rank in range(self._size)]
            part = Block(mine, placed, bounds)
            total = self.reduce_own(part, reduction)
            reduction.finish(total)
            self.publish(part, total)

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`. Reads and writes p times the bytes of a part per rank."""
        starts = starts_of(counts)
        block = self._window.slot_bytes // part.element_size()
        out[starts[self._index] : starts[self._index] + counts[self._index]].copy_(part)
        for first in range(0, max(counts), block):
            slots = self._window.next_slots(part.dtype)
            mine = part[first : first + block]
            slots[self._index][: mine.numel()].copy_(mine)
            self._window.barrier()
            for number in range(1, self._size):
                rank = (self._index + number) % self._size  # not all from the same one at the same time
                length = min(block, counts[rank] - first)
                if length > 0:
                    take(slots[rank][:length], out[starts[rank] + first : starts[rank] + first + length])

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`. The root copies a block into its slot while the others copy the block before."""
        for block in data.split(self._window.slot_bytes // data.element_size()):
            slot = self._window.next_slots(data.dtype)[root][: block.numel()]
            if self._index == root:
                slot.copy_(block)
            self._window.barrier()
            if self._index != root:
                take(slot, block)

    def reduce(self, data: torch.Tensor, root: int, reduction: Reduction) -> None:
        """See `Algorithm`."""
        for block in self.blocks(data if self._index == root else data.clone()):
            self.contribute(block, reduction)
            self._window.barrier()
            total = self.reduce_own(block, reduction)
            reduction.finish(total)
            self.publish(block, total)
            self._window.barrier()
            if self._index == root:
                self.collect(block)

    def close(self) -> None:
        """Free the window. Collective over the node."""
        self._window.close()
