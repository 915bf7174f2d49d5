"""Collectives between ranks of one node through shared memory, in cache-sized blocks.

All-reduce: each rank owns 1/p of every block. It copies the other owners' parts into its slot; after a barrier each
owner adds its part of all slots to its own and writes the sum over each of them, and after another everyone copies the
sums back. A value is read from memory once and written once; everything between happens in cache. See `window` for
who may write when, and why a sum is written once for every rank that reads it.

Tensors that lie in shared memory themselves (`shared_tensors`) need no slots: each rank works on
its 1/p of all of them.

Source: the block-wise shared-memory reductions of R. L. Graham, G. Shipman, "MPI Support for Multi-core Architectures:
Optimized Shared Memory Collectives", EuroPVM/MPI 2008. Rejected: a third set of slots to save one barrier of two
(slower: three sets do not fit the cache), process_vm_readv (the kernel's copies are slower than two of our own).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.reduction import SIXTEEN_BIT, Reduction, split_evenly, starts_of, wide_dtype
from hvdkit.collectives.shared_tensors import SharedTensors
from hvdkit.collectives.window import CACHE_LINE, Window, take

_SLOT_BYTES = 2 * 2**20
_PIECE_BYTES = 256 * 2**10
_LARGEST_WINDOW_BYTES = 256 * 2**20


def slot_bytes_for(ranks: int) -> int:
    """Bytes of a slot on a node of `ranks` ranks: 2 MB (the best of 0.5 to 8 at 2 and 4 ranks), less for very many."""
    slot_bytes = min(_SLOT_BYTES, _LARGEST_WINDOW_BYTES // (2 * ranks))
    return max(ranks, slot_bytes // CACHE_LINE) * CACHE_LINE


class Places(NamedTuple):
    """Where blocks of one length lie in the slots of one turn."""

    slots: list[torch.Tensor]
    """Every rank's slot."""
    own: tuple[int, int]
    """Begin and end of the part of a block that this rank owns."""
    rest: list[tuple[int, int]]
    """Begins and ends of what the other ranks own: nothing, or what lies before `own`, or after, or both."""
    mine: list[torch.Tensor]
    """This rank's slot at `rest`."""
    theirs: list[torch.Tensor]
    """The other ranks' slots at `own`."""


class Block(NamedTuple):
    """A block of a rank's values; its parts are views, cut once."""

    values: torch.Tensor
    own: torch.Tensor
    rest: list[torch.Tensor]
    places: Places


class SharedMemory:
    """See the module. `group` must lie on one node; the window is shared with nobody else."""

    name = "shared_memory"

    def __init__(self, group: Group, slot_bytes: int | None = None) -> None:
        self._window = Window(group.mpi, group.node, slot_bytes or slot_bytes_for(group.node_size))
        self.tensors = SharedTensors(group)
        self._size, self._index = group.node_size, group.node_index
        self._others = [rank for rank in range(self._size) if rank != self._index]
        self._whole: dict[tuple[int, torch.dtype, int], Places] = {}

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`. Moves 2(p-1)/p of the bytes between caches per rank."""
        if (everyones := self.tensors.everyones(data)) is not None:
            self._reduce_in_place(everyones, reduction)
            return
        for block in self.blocks(data):
            self.contribute(block, reduction)
            self._window.barrier()
            total = self.reduce_own(block, reduction)
            reduction.finish(total)
            self.publish(block, total)
            self._window.barrier()
            self.collect(block)

    def _reduce_in_place(self, everyones: list[torch.Tensor], reduction: Reduction) -> None:
        """Reduce this rank's part of shared tensors and write the result into all of them."""
        bounds = split_evenly(everyones[0].numel(), self._size, CACHE_LINE // everyones[0].element_size())
        start, stop = bounds[self._index]
        for own, _, *theirs in self._pieces(everyones[self._index][start:stop], everyones, start, stop):
            total = self._reduce_unscaled(own, theirs, reduction)
            reduction.finish(total)
            self._publish(own, theirs, total)
        self._window.barrier()

    def _pieces(
        self, out: torch.Tensor, everyones: list[torch.Tensor], start: int, stop: int
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """`out`, and start:stop of this rank's tensor and then of all others', in pieces that fit a core's cache."""
        parts = [everyones[rank][start:stop] for rank in (self._index, *self._others)]
        return zip(*(tensor.split(_PIECE_BYTES // out.element_size()) for tensor in (out, *parts)), strict=True)

    # -- the parts of it, which `hierarchical` puts together with work between nodes

    def blocks(self, data: torch.Tensor, owners: int | None = None) -> Iterator[Block]:
        """Cut `data` into blocks of a slot each; the first `owners` ranks own parts (default: all)."""
        for values in data.split(self._window.slot_bytes // data.element_size()):
            if count := values.numel():
                places = self._places(data.dtype, count, owners or self._size)
                start, stop = places.own
                yield Block(values, values[start:stop], [values[begin:end] for begin, end in places.rest], places)

    def _places(self, dtype: torch.dtype, count: int, owners: int) -> Places:
        slots = self._window.next_slots(dtype)
        key = (self._window.turn, dtype, owners)
        if count < slots[0].numel():
            return self._cut(slots, count, owners)
        if key not in self._whole:
            self._whole[key] = self._cut(slots, count, owners)
        return self._whole[key]

    def _cut(self, slots: list[torch.Tensor], count: int, owners: int) -> Places:
        bounds = split_evenly(count, owners, CACHE_LINE // slots[0].element_size())
        start, stop = bounds[self._index] if self._index < owners else (count, count)
        rest = [(begin, end) for begin, end in ((0, start), (stop, count)) if begin < end]
        mine = [slots[self._index][begin:end] for begin, end in rest]
        theirs = [slots[rank][start:stop] for rank in self._others] if start < stop else []
        return Places(slots, (start, stop), rest, mine, theirs)

    def contribute(self, block: Block, reduction: Reduction) -> None:
        """Copy the other owners' parts of `block` into this rank's slot, times this rank's factor."""
        for source, place in zip(block.rest, block.places.mine, strict=True):
            self._copy_scaled(source, place, reduction)

    def _copy_scaled(self, source: torch.Tensor, target: torch.Tensor, reduction: Reduction) -> None:
        factor = reduction.factor(self._index)
        if factor == 1.0 or source.dtype in SIXTEEN_BIT:  # 16-bit values: the owner scales in float32
            target.copy_(source)
        else:
            torch.mul(source, factor, out=target)

    def reduce_own(self, block: Block, reduction: Reduction) -> torch.Tensor:
        """Combine this rank's part over all ranks; returns the result, not yet `finish`ed, for `publish`.

        That is the part itself of `block.values`, reduced in place, but a float32 copy where values have 16 bits.
        """
        return self._reduce(block.own, block.places.theirs, reduction)

    def _reduce(self, own: torch.Tensor, theirs: list[torch.Tensor], reduction: Reduction) -> torch.Tensor:
        if own.dtype in SIXTEEN_BIT:
            return self._reduce_wide(own, theirs, reduction)
        factor = reduction.factor(self._index)
        if not theirs:
            return own.mul_(factor) if factor != 1.0 else own
        if reduction.op == "sum":
            torch.add(theirs[0], own, alpha=factor if factor != 1.0 else 1, out=own)
        else:
            reduction.combine(theirs[0], own, out=own)
        for part in theirs[1:]:
            reduction.combine(own, part, out=own)
        return own

    def _reduce_unscaled(self, own: torch.Tensor, theirs: list[torch.Tensor], reduction: Reduction) -> torch.Tensor:
        """The same where the other ranks have not multiplied their values by their factors."""
        if reduction.factors is None or own.dtype in SIXTEEN_BIT:
            return self._reduce(own, theirs, reduction)
        own.mul_(reduction.factor(self._index))
        for rank, part in zip(self._others, theirs, strict=True):
            own.add_(part, alpha=reduction.factor(rank))
        return own

    def _reduce_wide(self, own: torch.Tensor, theirs: list[torch.Tensor], reduction: Reduction) -> torch.Tensor:
        total = own.to(wide_dtype(own.dtype))
        if reduction.factor(self._index) != 1.0:
            total.mul_(reduction.factor(self._index))
        for rank, part in zip(self._others, theirs, strict=False):  # no parts where this rank owns nothing
            if reduction.op == "sum":
                total.add_(part, alpha=reduction.factor(rank))
            else:
                reduction.combine(total, part.to(total.dtype), out=total)
        return total

    def publish(self, block: Block, total: torch.Tensor) -> None:
        """Put the result of this rank's part into `block`, and over what each other rank contributed to it."""
        self._publish(block.own, block.places.theirs, total)

    def _publish(self, own: torch.Tensor, theirs: list[torch.Tensor], total: torch.Tensor) -> None:
        if total is not own:
            own.copy_(total)
        for place in theirs:
            place.copy_(own)

    def collect(self, block: Block) -> None:
        """Copy the other owners' results into `block`."""
        for target, place in zip(block.rest, block.places.mine, strict=True):
            target.copy_(place)

    def reduce_scatter(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], reduction: Reduction
    ) -> None:
        """See `Algorithm`. Writes (p-1)/p of the bytes into shared memory per rank, and reads as many."""
        starts = starts_of(counts)
        if (everyones := self.tensors.everyones(data)) is not None:
            begin = starts[self._index]
            for target, own, *theirs in self._pieces(out, everyones, begin, begin + counts[self._index]):
                target.copy_(own)
                total = self._reduce_unscaled(target, theirs, reduction)
                reduction.finish(total)
                self._publish(target, [], total)
            self._window.barrier()
            return
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
            theirs = [slots[rank][self._index * piece :][:length] for rank in self._others]
            total = self._reduce(mine, theirs, reduction)
            reduction.finish(total)
            self._publish(mine, theirs, total)

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`. Reads and writes p times the bytes of a part per rank."""
        starts = starts_of(counts)
        if len(set(counts)) == 1 and (everyones := self.tensors.everyones(part)) is not None:
            for number in range(self._size):
                rank = (self._index + number) % self._size  # not all from the same one at the same time
                out[starts[rank] : starts[rank] + counts[rank]].copy_(everyones[rank])
            self._window.barrier()
            return
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
        if (everyones := self.tensors.everyones(data)) is not None:
            if self._index != root:
                data.copy_(everyones[root])
            self._window.barrier()
            return
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
        self._whole = {}
        self._window.close()
