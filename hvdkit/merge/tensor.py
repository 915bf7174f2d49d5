"""Merges one tensor of several submodels, a block at a time: memory does not depend on the tensor's length.

Rules without a sparsifier whose combiner is linear take one pass over the blocks, two if the combiner wants angles;
sparsifiers that keep the largest elements take two more passes (four in float64) to find out which those are.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hvdkit.errors import MergeError
from hvdkit.merge.blocks import BLOCK_ELEMENTS, Block, Grid
from hvdkit.merge.combine import COMBINERS, Linear
from hvdkit.merge.combine.interface import Gram
from hvdkit.merge.order_statistics import by_sorting, order_statistics
from hvdkit.merge.settings import Settings
from hvdkit.merge.sparsify import SPARSIFIERS, Place

Read = Callable[[int, int], torch.Tensor]
"""Elements [start, stop) of one submodel's flattened tensor: (stop - start,) of any floating dtype, valid until the
next call."""


_SORTED = 2**14
"""Elements of a tensor up to which sorting is quicker than counting; at most a block."""


def computed_in(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """float64 if any of `dtypes` is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


class Scratch:
    """Memory for one block at a time, used again for every block and tensor: it stays in the cache."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def room(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """(rows, columns) of any values, until the next call."""
        if self._memory.dtype != dtype or self._memory.numel() < rows * columns:
            self._memory = torch.empty(rows * columns, dtype=dtype)
        return self._memory[: rows * columns].view(rows, columns)


def memory_bytes(models: int) -> int:
    """About what merging takes: float32 blocks, what is read, counts of order statistics, intermediate results."""
    return (models + 1) * 8 * BLOCK_ELEMENTS + models * 2**19 + 24 * 4 * BLOCK_ELEMENTS


@dataclass(frozen=True)
class TensorMerge:
    """The merge of the tensor `name` of `shape` from M submodels, computed in `dtype` (float32 or float64)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    settings: Settings
    models: Sequence[Read]
    base: Read | None = None
    """Of the tensor that the submodels come from; only for rules on task vectors."""
    scratch: "Scratch" = field(default_factory=lambda: Scratch())
    origins: Sequence[str] = ()
    """What errors call the submodels and the base; by default their numbers."""

    def __post_init__(self) -> None:
        if self.settings.rule.has_base and self.base is None:
            raise ValueError(f"{self.settings.rule.name} merges task vectors: it needs the base of the submodels")

    @property
    def grid(self) -> Grid:
        """Its blocks."""
        return Grid(self.shape)

    def merged(self) -> Iterator[tuple[Block, torch.Tensor]]:
        """Every block, (n,), valid until the next.

        Raises MergeError for a value that is not finite, naming the submodel by its number.
        """
        magnitudes = self.magnitudes(range(len(self.models)))
        gram = self.gram(self.grid.blocks())
        yield from self.blocks(self.grid.blocks(), magnitudes, gram)

    def magnitudes(self, models: Sequence[int]) -> list[list[float]]:
        """Of each of these submodels' task vectors the order statistics that the sparsifier wants."""
        rule, settings = self.settings.rule, self.settings
        if rule.sparsifier is None or not self.grid.count:
            return [[] for _ in models]
        ranks = [
            SPARSIFIERS[rule.sparsifier].ranks(self.grid.count, settings.densities[number], settings)
            for number in models
        ]
        if self.grid.count <= _SORTED:
            (vectors,) = self._vectors(self.grid.blocks(), models)
            return by_sorting(vectors, ranks)
        return order_statistics(lambda: self._vectors(self.grid.blocks(), models), ranks, self.dtype)

    def gram(self, blocks: Iterable[Block]) -> Gram:
        """The inner products of what is combined over `blocks`: (M, M), zeros where the combiner does not want them."""
        gram = np.zeros((len(self.models), len(self.models)))
        combiner = COMBINERS[self.settings.rule.combiner]
        if isinstance(combiner, Linear) and combiner.needs_gram:
            for vectors in self._vectors(blocks, range(len(self.models))):
                gram += (vectors @ vectors.T).double().numpy()
        return gram

    def blocks(
        self, blocks: Iterable[Block], magnitudes: Sequence[Sequence[float]], gram: Gram
    ) -> Iterator[tuple[Block, torch.Tensor]]:
        """Some blocks, given what holds for the whole tensor."""
        rule, settings = self.settings.rule, self.settings
        combiner = COMBINERS[rule.combiner]
        weights = np.array(settings.weights)
        linear = combiner.coefficients(weights, gram) if isinstance(combiner, Linear) else None
        of_rows = self._of_rows(linear) if linear is not None else None
        buffer = self._buffer(len(self.models) + self.settings.rule.has_base + 1)
        for block in blocks:
            rows, result = self._rows(block, buffer[:-1]), buffer[-1, : block.stop - block.start]
            if of_rows is not None and rule.sparsifier is None:
                torch.mm(of_rows[None], rows, out=result[None])
            else:
                vectors = self._sparse(rows, block, magnitudes)
                if isinstance(combiner, Linear):
                    merged = torch.from_numpy(linear).to(self.dtype) @ vectors
                else:
                    merged = combiner.combine(vectors, weights)
                torch.add(rows[-1], merged, alpha=settings.scale, out=result)
            if not bool(result.sum().isfinite()) and not bool(result.isfinite().all()):
                self._blame(block)
            yield block, result

    def _of_rows(self, linear: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
        """Coefficients of the submodels and the base itself, from those of task vectors."""
        if self.settings.rule.has_base:
            scaled = linear * self.settings.scale
            linear = np.append(scaled, 1 - scaled.sum())
        return torch.from_numpy(linear).to(self.dtype)

    def _buffer(self, rows: int) -> torch.Tensor:
        """Room for a block of so many tensors."""
        return self.scratch.room(rows, min(BLOCK_ELEMENTS, self.grid.count), self.dtype)

    def _rows(self, block: Block, buffer: torch.Tensor) -> torch.Tensor:
        """The submodels' elements and, for rules on task vectors, the base's: (M or M + 1, n) in `buffer`."""
        reads = [*self.models, self.base] if self.settings.rule.has_base else self.models
        rows = buffer[:, : block.stop - block.start]
        for row, read in zip(rows, reads, strict=True):
            assert read is not None
            row.copy_(read(block.start, block.stop))
        return rows

    def _sparse(self, rows: torch.Tensor, block: Block, magnitudes: Sequence[Sequence[float]]) -> torch.Tensor:
        """The sparsified task vectors, (M, n), in the memory of `rows`."""
        vectors = rows[:-1].sub_(rows[-1])
        if self.settings.rule.sparsifier is not None:
            sparsifier = SPARSIFIERS[self.settings.rule.sparsifier]
            for number, vector in enumerate(vectors):
                place = Place(self.grid.width, self._generator(number, block))
                density = self.settings.densities[number]
                sparsifier.apply_(vector, magnitudes[number], density, self.settings, place)
        return vectors

    def _vectors(self, blocks: Iterable[Block], models: Sequence[int]) -> Iterator[torch.Tensor]:
        """What is combined, before it is sparsified."""
        buffer = self._buffer(len(models) + 1)
        for block in blocks:
            rows, base = buffer[:-1, : block.stop - block.start], buffer[-1, : block.stop - block.start]
            for row, number in zip(rows, models, strict=True):
                row.copy_(self.models[number](block.start, block.stop))
            if self.settings.rule.has_base:
                assert self.base is not None
                rows.sub_(base.copy_(self.base(block.start, block.stop)))
            yield rows

    def _generator(self, model: int, block: Block) -> torch.Generator:
        text = f"{self.settings.seed}|{model}|{self.name}|{block.number}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
        return torch.Generator().manual_seed(seed)

    def _blame(self, block: Block) -> None:
        names = self.origins or [*(f"submodel {number}" for number in range(len(self.models))), "the base"]
        buffer = self._buffer(len(self.models) + self.settings.rule.has_base)
        for name, row in zip(names, self._rows(block, buffer), strict=False):
            if not bool(row.isfinite().all()):
                raise MergeError(f"{name}: {self.name} holds NaN or an infinity; nothing can be merged with it")
        raise MergeError(f"{self.name}: the merged values are too large for {self.dtype}; use a smaller scale")
