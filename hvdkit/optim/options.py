"""How gradients are aggregated, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvdkit.collectives import ReduceOp
from hvdkit.optim.buckets import DEFAULT_BUCKET_BYTES


@dataclass(frozen=True)
class ReducerOptions:
    """How gradients are aggregated; see `DistributedOptimizer` for the meaning of each."""

    compression: Any
    op: ReduceOp = "average"
    passes: int = 1
    predivide: float = 1.0
    groups: Sequence[Sequence[int]] | int | None = None
    sparse_as_dense: bool = False
    weight: float | None = None
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    overlap: bool | None = None


@dataclass
class Statistics:
    """What aggregation cost this rank since the optimizer was made."""

    rounds: int = 0
    bytes_sent: float = 0.0
    """2(p-1)/p times the bytes of all buckets, after compression."""
    exposed_seconds: float = 0.0
    """Time between the end of backward and the last aggregated gradient."""
