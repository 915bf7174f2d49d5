"""What a reducer asks of an exchange of gradients, and which exchange it gets."""

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from hvdkit.collectives import Collectives, DirectCollectives, HorovodEngine
from hvdkit.optim.bucket_sums import Residuals
from hvdkit.optim.compression import BucketCompressor
from hvdkit.optim.direct_exchange import DirectExchange
from hvdkit.optim.exchange import Exchange
from hvdkit.optim.options import ReducerOptions, Statistics
from hvdkit.optim.plan import Agreement, Overlap
from hvdkit.optim.weighting import Weighting
from hvdkit.runtime import World, require_world


class AnExchange(Protocol):
    """Exchanges the gradients of one backward after another, as `DirectExchange` says of each method."""

    inverse: float
    written: list["weakref.ref[torch.Tensor]"]

    def gradient_is_ready(self, index: int, fires: int) -> None: ...
    def send_rest(self) -> None: ...
    def finish(self) -> bool: ...
    def abandon(self) -> None: ...
    def residuals(self) -> Residuals: ...
    def close(self) -> None: ...


MakeExchange = Callable[
    [Collectives, Agreement, Sequence[torch.Tensor], ReducerOptions, Weighting, Statistics], AnExchange
]


def choose_exchange(
    collectives: Collectives, agreed: Agreement, parameters: Sequence[torch.Tensor], options: ReducerOptions,
    weighting: Weighting, statistics: Statistics, residuals: Residuals,
) -> AnExchange:  # fmt: skip
    """The exchange by `collectives`, direct ones or Horovod's engine; it goes on from `residuals`."""
    arguments = (agreed, parameters, options, weighting, statistics, residuals)
    if isinstance(collectives, DirectCollectives):
        return DirectExchange(collectives, *arguments)
    assert isinstance(collectives, HorovodEngine), "what does not communicate directly does it by the engine"
    return Exchange(collectives, *arguments)


def overlap_of(options: ReducerOptions) -> Overlap:
    """When an exchange may run beside the backward pass, as this rank would have it."""
    if options.overlap is None and _can_overlap(require_world(), options.compression):
        return Overlap.WHILE_ALONE
    return Overlap.ALWAYS if options.overlap else Overlap.NEVER


def _can_overlap(world: World, compression: object) -> bool:
    """Whether computing leaves something to communication: a core, or the wire between nodes.

    A bucket compressor computes more than it sends, and took 14% longer beside the backward pass that it disturbs.
    """
    return world.threads > torch.get_num_threads() or (
        world.cross_size > 1 and not isinstance(compression, BucketCompressor)
    )
