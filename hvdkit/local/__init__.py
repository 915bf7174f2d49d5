"""Local updates: ranks train by themselves and come together once in many steps (Local SGD, DiLoCo)."""

from hvdkit.local.checks import Level, Pace
from hvdkit.local.methods import DiLoCo, LocalSGD
from hvdkit.local.outer import diloco_optimizer
from hvdkit.local.rounds import Rounds
from hvdkit.local.schedule import Adaptive, Schedule, Scheduled, parse_schedule
from hvdkit.local.statistics import Statistics

__all__ = [
    "Adaptive",
    "DiLoCo",
    "Level",
    "LocalSGD",
    "Pace",
    "Rounds",
    "Schedule",
    "Scheduled",
    "Statistics",
    "diloco_optimizer",
    "parse_schedule",
]
