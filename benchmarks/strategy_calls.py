"""hvdkit's all-reduce by each of its strategies, as a user calls it."""

from collections.abc import Callable

import torch

import hvdkit as hvd
from hvdkit.collectives import STRATEGIES
from hvdkit.errors import HvdkitError

AllReduce = Callable[[torch.Tensor], torch.Tensor]


def all_reduce_by(strategy: str) -> AllReduce:
    """The function that sums a tensor over all ranks in place by `strategy`."""
    if strategy == "horovod":
        return lambda tensor: hvd.allreduce_(tensor, op=hvd.Sum, name="bench.horovod")
    return lambda tensor: hvd.allreduce_(tensor, op=hvd.Sum, name=f"bench.{strategy}", strategy=strategy)


def usable_strategies(wanted: tuple[str, ...] = STRATEGIES) -> tuple[dict[str, AllReduce], dict[str, str]]:
    """Of the `wanted` strategies those that can be used by these ranks, and for the others the reason why not.

    Collective. A strategy that is not valid here says so on all ranks before any communicates.
    """
    usable, reasons = {}, {}
    for strategy in wanted:
        call = all_reduce_by(strategy)
        try:
            call(torch.ones(3))
        except (HvdkitError, ValueError) as error:
            reasons[strategy] = str(error)
        else:
            usable[strategy] = call
    return usable, reasons
