"""Collective operations on tensors: one file per algorithm behind one interface, and a naive reference.

`direct_collectives(world)` are hvdkit's own, the algorithm of each call chosen by a cost model (`cost`) with parameters
that a short probe measures (`probe`); Horovod's engine works where they do not (Gloo, GPUs).
"""

from hvdkit.collectives.algorithms import NAMES, STRATEGIES, check_strategy
from hvdkit.collectives.allocate import empty_shared
from hvdkit.collectives.connect import choose_as_saved, direct_collectives, saved_choice, why_no_direct
from hvdkit.collectives.direct import DirectCollectives
from hvdkit.collectives.horovod_engine import HorovodEngine
from hvdkit.collectives.interface import Collectives, Done, ReduceOp, Work, wait_for_all
from hvdkit.collectives.join import join
from hvdkit.collectives.levels import Levels
from hvdkit.collectives.naive import Naive
from hvdkit.collectives.window import NoRoomError

__all__ = [
    "NAMES",
    "STRATEGIES",
    "Collectives",
    "DirectCollectives",
    "Done",
    "HorovodEngine",
    "Levels",
    "Naive",
    "NoRoomError",
    "ReduceOp",
    "Work",
    "check_strategy",
    "choose_as_saved",
    "direct_collectives",
    "empty_shared",
    "join",
    "saved_choice",
    "wait_for_all",
    "why_no_direct",
]
