"""Collective operations on tensors: one file per algorithm behind one interface, and a naive reference.

Horovod's engine is the only algorithm so far that works everywhere (MPI, Gloo, NCCL).
"""

from hvdkit.collectives.horovod_engine import HorovodEngine
from hvdkit.collectives.interface import Collectives, ReduceOp, Work
from hvdkit.collectives.naive import Naive

__all__ = ["Collectives", "HorovodEngine", "Naive", "ReduceOp", "Work"]
