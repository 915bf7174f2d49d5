"""Which aggregation a configuration means, and whether this world can have it."""

from collections.abc import Callable
from typing import Any

import torch

from hvdkit.errors import ConfigError
from hvdkit.models import LanguageModel
from hvdkit.runtime import World, require_world
from hvdkit.train.aggregation import Aggregation
from hvdkit.train.config import TrainConfig
from hvdkit.train.weighed_aggregation import WeighedAggregation

Aggregate = Callable[[torch.optim.Optimizer, LanguageModel, TrainConfig], Aggregation]


def aggregate_with_hvdkit(optimizer: torch.optim.Optimizer, model: LanguageModel, config: TrainConfig) -> Aggregation:
    """Every rank starts from rank 0's weights; gradients go through `hvdkit.DistributedOptimizer`."""
    import hvdkit.optim as optim
    from hvdkit.runtime.dropin.functions import broadcast_parameters

    if config.sharding:
        return _sharded(optimizer, model, config)
    if config.local != "none":
        from hvdkit.train.local_aggregation import LocalAggregation

        return LocalAggregation(optimizer, model, config)
    broadcast_parameters(model.state_dict(), root_rank=0)
    return WeighedAggregation(
        optim.DistributedOptimizer(
            optimizer, model.named_parameters(), compression=config.compression, strategy=config.strategy
        )
    )


def _sharded(optimizer: torch.optim.Optimizer, model: LanguageModel, config: TrainConfig) -> Aggregation:
    from hvdkit.collectives import NoRoomError
    from hvdkit.sharding import shard
    from hvdkit.train.sharded_aggregation import ShardedAggregation

    def cut(shares: bool) -> Any:
        stage: Any = config.sharding
        return shard(model, optimizer, stage, strategy=config.strategy, shared_weights=shares)[1]

    try:
        sharded = cut(shares_weights(require_world(), config))
    except NoRoomError:  # on all ranks, before anything was changed
        sharded = cut(False)
    return ShardedAggregation(model, sharded, config.sharding)


def shares_weights(world: World, config: TrainConfig) -> bool:
    """Whether the node's ranks keep one copy of the weights: wherever that can be had, since the loop never writes to
    a weight but by its optimizer. Collective at its first call."""
    from hvdkit.sharding import can_share_weights

    return config.sharding in (1, 2) and can_share_weights(world, config.strategy)


def check_aggregation(world: World, config: TrainConfig) -> None:
    """Raise ConfigError if gradients cannot be brought together in this world as `config` wants."""
    from hvdkit.optim.compression import parse_compression
    from hvdkit.optim.distributed import check_strategy

    try:
        compression = parse_compression(config.compression)
        if config.sharding and compression is not parse_compression("none"):
            raise ValueError(f"compression {config.compression} does not go with --sharding {config.sharding}")
        parse_compression(config.outer_compression)
        check_strategy(config.strategy, world, [world.device])
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('strategy=', 'strategy ', 1)}") from None
    if config.local != "none":
        from hvdkit.local import parse_schedule

        parse_schedule(config.sync_every)
