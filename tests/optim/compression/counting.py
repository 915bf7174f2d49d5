"""Collectives that count what passes through them, and the two kinds that every test runs on."""

from typing import Any

import torch

from hvdkit.collectives import Collectives, HorovodEngine, Naive, ReduceOp, Work
from hvdkit.runtime import World

KINDS = {"naive": Naive, "engine": HorovodEngine}


class Counting:
    """`inner`, with the bytes that a ring would make this rank send, and the names of the calls."""

    def __init__(self, inner: Collectives) -> None:
        self._inner, self.size, self.index = inner, inner.size, inner.index
        self.bytes_sent = 0.0
        self.calls: list[str] = []

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        self.calls.append(f"all_reduce {name} {tuple(tensor.shape)} {tensor.dtype}")
        self.bytes_sent += 2 * (self.size - 1) / self.size * tensor.numel() * tensor.element_size()
        return self._inner.all_reduce_async_(tensor, name, op=op, prescale=prescale)

    def all_gather(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        self.calls.append(f"all_gather {name} {tuple(tensor.shape)} {tensor.dtype}")
        self.bytes_sent += (self.size - 1) * tensor.numel() * tensor.element_size()
        return self._inner.all_gather(tensor, name)

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        raise AssertionError("compression sends tensors only")


def collectives_of(kind: str, world: World) -> Counting:
    """Counted collectives of one of KINDS."""
    return Counting(KINDS[kind](world))
