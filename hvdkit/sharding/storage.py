"""Where a flat's elements lie: whole on every rank, once per node, or in parts that are lent whole for a while."""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import HvdkitError
from hvdkit.sharding.partition import Flat


class Storage(Protocol):
    """The memory of one flat on this rank."""

    part: torch.Tensor
    """(counts[rank],): this rank's part, always there."""

    def spread(self, collectives: Collectives, name: str) -> None:
        """All parts have changed: make them known to all ranks. Collective."""

    def check(self, parameters: Sequence[torch.Tensor]) -> None:
        """Raise HvdkitError if the parameters lie elsewhere by now, where nobody would see them stepped."""


class WholeStorage:
    """The whole flat on every rank (stages 1 and 2); a single parameter stays where it is."""

    def __init__(self, flat: Flat, parameters: Sequence[torch.Tensor], rank: int) -> None:
        self._flat = flat
        mine = [parameters[index] for index in flat.indices]
        if len(mine) == 1:
            if not mine[0].is_contiguous():
                mine[0].data = mine[0].data.contiguous()
            self.whole = mine[0].data.view(-1)
        else:
            self.whole = torch.cat([parameter.detach().reshape(-1) for parameter in mine])
            point_at(mine, self.whole, flat)
        begin, end = flat.bounds(rank)
        self.part = self.whole[begin:end]

    def spread(self, collectives: Collectives, name: str) -> None:
        """See `Storage`."""
        collectives.all_gather_into(self.part, self.whole, self._flat.counts, name)

    def check(self, parameters: Sequence[torch.Tensor]) -> None:
        """See `Storage`."""
        _check_place(parameters, self.whole)


class NodeStorage:
    """One whole flat in the memory that the ranks of a node share: `whole`, which each rank steps its part of."""

    def __init__(self, flat: Flat, parameters: Sequence[torch.Tensor], rank: int, whole: torch.Tensor) -> None:
        mine = [parameters[index] for index in flat.indices]
        begin, end = flat.bounds(rank)
        self._whole = whole
        self.part = whole[begin:end]
        self.part.copy_(torch.cat([parameter.detach().reshape(-1) for parameter in mine])[begin:end])
        point_at(mine, whole, flat)

    def spread(self, collectives: Collectives, name: str) -> None:
        """See `Storage`. The parts lie in their places already; the caller waits for the other ranks."""

    def check(self, parameters: Sequence[torch.Tensor]) -> None:
        """See `Storage`."""
        _check_place(parameters, self._whole)


class PartStorage:
    """This rank's part (stage 3); `gather` lends the whole until `release`.

    Without it the parameters keep their shapes and read as NaN, in four bytes.
    """

    def __init__(self, flat: Flat, parameters: Sequence[torch.Tensor], rank: int, part: torch.Tensor) -> None:
        """`part` is memory for this rank's part."""
        self._flat = flat
        self._mine = [parameters[index] for index in flat.indices]
        whole = torch.cat([parameter.detach().reshape(-1) for parameter in self._mine])
        begin, end = flat.bounds(rank)
        self.part = part.copy_(whole[begin:end])
        self._whole = whole
        self._views = [
            piece.view(parameter.shape)
            for piece, parameter in zip(whole.split(list(flat.lengths)), self._mine, strict=True)
        ]
        nan = torch.full((), float("nan"), device=flat.device).to(flat.dtype)
        self._absent = [nan.expand(parameter.shape) for parameter in self._mine]
        self.is_whole = True
        self.release()

    def gather(self, collectives: Collectives, name: str) -> None:
        """Lend the whole flat to its parameters. Collective; does nothing where it is lent already."""
        if self.is_whole:
            return
        self.fill(collectives, name)
        self.lend()

    def fill(self, collectives: Collectives, name: str) -> None:
        """Collect the whole flat, which nobody sees before `lend`. Collective."""
        storage = self._whole.untyped_storage()
        storage.resize_(self._flat.numel * self._whole.element_size())
        # Views that autograd has kept from the forward pass see the values again; their versions stay.
        collectives.all_gather_into(self.part, _alias(self._whole), self._flat.counts, name)

    def lend(self) -> None:
        """Let the parameters see what `fill` collected."""
        for parameter, view in zip(self._mine, self._views, strict=True):
            parameter.data = view
        self.is_whole = True

    def release(self) -> None:
        """Give the memory of the whole flat back."""
        if not self.is_whole:
            return
        for parameter, absent in zip(self._mine, self._absent, strict=True):
            parameter.data = absent
        self._whole.untyped_storage().resize_(0)
        self.is_whole = False

    def spread(self, collectives: Collectives, name: str) -> None:
        """See `Storage`. The next `gather` does."""
        self.release()

    def check(self, parameters: Sequence[torch.Tensor]) -> None:
        """See `Storage`. Each `lend` puts the parameters in their place."""


def _check_place(parameters: Sequence[torch.Tensor], whole: torch.Tensor) -> None:
    first = parameters[0]
    if first.numel() and (first.data_ptr() != whole.data_ptr() or first.dtype != whole.dtype):
        raise HvdkitError(
            "a parameter's memory was replaced after hvd.shard() (by .to(), .half(), or `p.data =`): change the model "
            "before, or write into the parameter"
        )


def _alias(whole: torch.Tensor) -> torch.Tensor:
    """The same memory in a storage of its own: one that NumPy has seen, as in MPI's calls, is never resized again."""
    if whole.device.type != "cpu" or not whole.numel():
        return whole
    memory = (ctypes.c_ubyte * whole.nbytes).from_address(whole.data_ptr())
    return torch.frombuffer(memory, dtype=whole.dtype)


def point_at(parameters: Sequence[torch.Tensor], whole: torch.Tensor, flat: Flat) -> None:
    """Let `parameters` be views of `whole`."""
    for parameter, view in zip(parameters, whole.split(list(flat.lengths)), strict=True):
        parameter.data = view.view(parameter.shape)
