"""What a rank holds of a sharded model: the flats, their memory, and the pieces that its optimizer steps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from hvdkit.collectives import Collectives
from hvdkit.sharding.partition import Flat, Piece
from hvdkit.sharding.storage import NodeStorage, PartStorage, Storage

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)


@dataclass
class HeldPiece:
    """A piece of a parameter, and the tensor that the optimizer steps."""

    piece: Piece
    tensor: nn.Parameter
    """float32 where the parameter has 16 bits ("master weights"), otherwise the piece of the parameter itself."""
    target: torch.Tensor | None
    """Where master weights are rounded to."""


class Shard:
    """One flat of `rank`: its memory and its pieces; one whole parameter where `keeps_shape`."""

    def __init__(self, flat: Flat, storage: Storage, parameters: Sequence[torch.Tensor], rank: int, *,
                 keeps_shape: bool, has_masters: bool) -> None:  # fmt: skip
        self.flat, self.storage, self.rank = flat, storage, rank
        self.parameters = [parameters[index] for index in flat.indices]
        self.held: list[HeldPiece] = []
        if not flat.trains:
            return
        for piece in flat.pieces(rank):
            part = piece.within(storage.part)
            if keeps_shape:
                part = part.view(parameters[piece.index].shape)
            target = part if has_masters and flat.dtype in _SIXTEEN_BIT else None
            stepped = part if target is None else part.float()
            self.held.append(HeldPiece(piece, nn.Parameter(stepped, requires_grad=True), target))

    @contextmanager
    def whole(self, collectives: Collectives, name: str) -> Iterator[None]:
        """Within it this rank has the whole of the flat's parameters. Collective at stage 3."""
        storage = self.storage
        if not isinstance(storage, PartStorage) or storage.is_whole:
            yield
            return
        storage.gather(collectives, name)
        try:
            yield
        finally:
            storage.release()

    def put_gradient(self, part: torch.Tensor, is_used: Callable[[int], bool]) -> None:
        """Give `part`, the sum of the gradients of this rank's part, to the pieces; added to what they have."""
        for held in self.held:
            piece = held.piece
            if not is_used(piece.index):
                continue
            gradient = piece.within(part).view(held.tensor.shape).to(held.tensor.dtype)
            held.tensor.grad = gradient if held.tensor.grad is None else held.tensor.grad.add_(gradient)

    def round_masters(self) -> None:
        """Put master weights into the parameters."""
        for held in self.held:
            if held.target is not None:
                held.target.copy_(held.tensor.detach())

    def read_masters(self, index: int | None = None) -> None:
        """The inverse, after parameters were loaded: all, or parameter `index` alone."""
        for held in self.held:
            if held.target is not None and index in (None, held.piece.index):
                held.tensor.detach().copy_(held.target)


class Shards:
    """All shards of this rank, over the ranks of `collectives`."""

    def __init__(
        self, stage: int, names: Sequence[str], parameters: Sequence[nn.Parameter], shards: Sequence[Shard],
        collectives: Collectives, key: str,
    ) -> None:  # fmt: skip
        self.key = key
        """What the names of its collectives begin with."""
        self.stage, self.names, self.parameters = stage, list(names), list(parameters)
        self.collectives = collectives
        self.shards = list(shards)
        self.shard_of = {index: shard for shard in shards for index in shard.flat.indices}
        self.is_shared_by_node = any(isinstance(shard.storage, NodeStorage) for shard in shards)
        self.gradient_bytes = 0
        """Of the last step: whole gradients when backward had ended (stage 1), or this rank's pieces (2, 3)."""

    @property
    def trained(self) -> list[Shard]:
        """Those with gradients."""
        return [shard for shard in self.shards if shard.flat.trains]

    def held(self) -> Iterator[HeldPiece]:
        """All pieces that this rank steps."""
        for shard in self.shards:
            yield from shard.held

    def spread(self) -> None:
        """The optimizer has stepped the pieces: all ranks learn the new parameters. Collective."""
        for number, shard in enumerate(self.shards):
            if shard.flat.trains:
                shard.storage.check(shard.parameters)
                shard.round_masters()
                shard.storage.spread(self.collectives, f"{self.key}.spread.{number}")
        if self.is_shared_by_node:
            self.wait_for_all()

    def read_masters(self) -> None:
        """Parameters were loaded: the optimizer's float32 copies follow."""
        for shard in self.shards:
            shard.read_masters()

    def wait_for_all(self) -> None:
        """Return when all ranks are here. Collective."""
        self.collectives.all_reduce_async_(torch.zeros(1), f"{self.key}.wait").wait()

    def full(self, index: int) -> torch.Tensor:
        """A copy of the whole parameter `index`, on every rank. Collective at stage 3."""
        shard = self.shard_of.get(index)
        with nullcontext() if shard is None else shard.whole(self.collectives, f"{self.key}.look.{index}"):
            return self.parameters[index].detach().clone()

    def put_full(self, index: int, value: torch.Tensor) -> None:
        """Set parameter `index` to `value`, (its shape,), which every rank has. Not collective."""
        shard = self.shard_of.get(index)
        if shard is None:
            self.parameters[index].detach().copy_(value)
            return
        if isinstance(shard.storage, PartStorage):
            shard.storage.release()
        flat = value.detach().reshape(-1)
        for piece in shard.flat.pieces(shard.rank):
            if piece.index == index:
                piece.within(shard.storage.part).copy_(flat[piece.begin : piece.end])
        if not isinstance(shard.storage, PartStorage | NodeStorage):
            self.parameters[index].detach().copy_(value)
        shard.read_masters(index)  # those of its neighbours may be loaded already, unrounded

    def bytes_held(self) -> dict[str, int]:
        """Bytes of parameters, master weights and gradients of this rank now; a node's common copy counts 1/N each."""
        parameters = sum(p.nbytes for index, p in enumerate(self.parameters) if index not in self.shard_of)
        for shard in self.shards:
            whole = shard.flat.numel * shard.flat.dtype.itemsize
            part = shard.storage.part.nbytes
            is_part = isinstance(shard.storage, NodeStorage) or (
                isinstance(shard.storage, PartStorage) and not shard.storage.is_whole
            )
            parameters += part if is_part else whole + (part if isinstance(shard.storage, PartStorage) else 0)
        gradients = sum(_nbytes(parameter.grad) for parameter in self.parameters)
        gradients += sum(_nbytes(held.tensor.grad) for held in self.held())
        masters = sum(held.tensor.nbytes for held in self.held() if held.target is not None)
        return {"parameters": parameters, "masters": masters, "gradients": gradients}


def _nbytes(gradient: torch.Tensor | None) -> int:
    if gradient is None:
        return 0
    if gradient.layout == torch.sparse_coo:
        return gradient._indices().nbytes + gradient._values().nbytes
    return gradient.nbytes
