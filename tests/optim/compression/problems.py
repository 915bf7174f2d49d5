"""Gradients that differ per rank and step, the exact sum of which every rank can compute for itself."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.optim.compression import Int8, PowerSGD, TopK
from hvdkit.runtime import World, gather_objects

SHAPES = [torch.Size(s) for s in [(40, 30), (17,), (), (8, 3, 3, 3), (1, 9), (0, 4), (1100, 12)]]
"""A bucket as models have them: matrices, a vector, a scalar, a convolution, a row, nothing, more rows than a piece."""

COMPRESSORS = [Int8(), Int8(block_values=7), TopK(ratio=0.3), PowerSGD(), PowerSGD(rank=1)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def count(shapes: Sequence[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)


def contribution(rank: int, step: int, values: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What `rank` contributes in `step`: (values,) of very different sizes, the same wherever it is computed."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    sizes = torch.rand(values, generator=generator, dtype=torch.float64).mul(4).sub(3)
    return (torch.randn(values, generator=generator, dtype=torch.float64) * 10**sizes).to(dtype)


def exact_sum(size: int, step: int, values: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The sum over ranks in float64."""
    parts = [contribution(rank, step, values, dtype).double() for rank in range(size)]
    return torch.stack(parts).sum(dim=0)


def assert_same_bits(world: World, tensor: torch.Tensor) -> None:
    """Every rank holds the same bits."""
    everyone = gather_objects(world, tensor.view(-1).view(torch.uint8))
    assert all(torch.equal(mine, theirs) for mine, theirs in itertools.pairwise(everyone))


def label(compressor: Any) -> str:
    return str(compressor)
