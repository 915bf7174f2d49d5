"""An all-gather of tensors that differ between ranks in their number of rows, which ranks tell each other first."""

import math

import numpy as np
import torch

from hvdkit.collectives.algorithms import Algorithms
from hvdkit.collectives.group import Group
from hvdkit.collectives.outputs import empty_output
from hvdkit.collectives.plans import flat_of, movable_view


def gather_rows(
    group: Group, algorithms: Algorithms, rows: torch.Tensor, strategy: str, out: torch.Tensor | None = None
) -> torch.Tensor:
    """All ranks' `rows`, (own number, ...) contiguous, one after another, in `out` where it is given. Collective.

    Raises ValueError on all ranks if one gives an `out` of another length.
    """
    lengths = _lengths(group, len(rows), -1 if out is None else len(out))
    width = math.prod(rows.shape[1:]) * (2 if rows.is_complex() else 1)
    counts = [length * width for length in lengths]
    if out is None:
        out = empty_output((sum(lengths), *rows.shape[1:]), rows.dtype)
    if out.numel():
        name = algorithms.resolve("all_gather", max(counts) * rows.element_size(), strategy)
        gather = algorithms.method("all_gather", name)
        gather(movable_view(flat_of(rows)), movable_view(out.view(-1)), counts)
    return out


def _lengths(group: Group, mine: int, room: int) -> list[int]:
    """All ranks' lengths. Raises ValueError on all if they do not fill the `room` of one; -1 for any."""
    found = np.zeros((group.size, 2), dtype=np.int64)
    group.comm.Allgather(np.array([mine, room], dtype=np.int64), found)
    lengths: list[int] = found[:, 0].tolist()
    for rank, given in enumerate(found[:, 1].tolist()):
        if given not in (-1, sum(lengths)):
            raise ValueError(
                f"all_gather: the ranks bring {sum(lengths)} rows in all, and rank {rank} gives an out= of {given}"
            )
    return lengths
