"""The blocks that a tensor is merged in: small enough for a core's cache, and the same wherever it is merged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_ELEMENTS = 2**18
"""1 MB in float32."""


@dataclass(frozen=True)
class Block:
    """A range of the flattened tensor."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Grid:
    """All blocks of a tensor: whole rows, or pieces of rows that are longer than a block."""

    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Length of a row: of the last dimension; a vector is one row."""
        return self.shape[-1] if self.shape else 1

    @property
    def count(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    def blocks(self) -> Sequence[Block]:
        """In order; none for an empty tensor."""
        if not self.count:
            return []
        rows = self.count // self.width
        if self.width <= BLOCK_ELEMENTS:
            length = BLOCK_ELEMENTS // self.width * self.width
            cuts = [*range(0, self.count, length)]
        else:
            cuts = [row * self.width + piece for row in range(rows) for piece in range(0, self.width, BLOCK_ELEMENTS)]
        return [
            Block(number, start, stop)
            for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], self.count], strict=True))
        ]
