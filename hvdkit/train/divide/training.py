"""One model trained by one group of ranks: by all of them, or a submodel by a few."""

import time

from hvdkit.checkpoint import seed_generators
from hvdkit.data import Position, Samples, ShardedSampler
from hvdkit.models import LanguageModel
from hvdkit.optim import DistributedOptimizer
from hvdkit.runtime import RankGroup, World
from hvdkit.runtime.dropin.functions import broadcast_parameters
from hvdkit.runtime.engine import horovod
from hvdkit.train.building import make_optimizer
from hvdkit.train.config import TrainConfig
from hvdkit.train.drift import check_drift
from hvdkit.train.loop import Loop, Progress
from hvdkit.train.report import Reporter, duration
from hvdkit.train.weighed_aggregation import WeighedAggregation


def train_apart(
    group: RankGroup, config: TrainConfig, model: LanguageModel, samples: Samples, reporter: Reporter
) -> None:
    """Train `model`, which has the same weights on all ranks of `group`, by these alone. Collective over them."""
    _train(group.world, group, config, model, samples, Position(), reporter)


def train_together(
    world: World, config: TrainConfig, model: LanguageModel, samples: Samples, start: Position, reporter: Reporter
) -> Position:
    """Train `model` by all ranks, from rank 0's weights; returns how far in `samples` it came. Collective."""
    broadcast_parameters(model.state_dict(), root_rank=0)
    return _train(world, horovod().global_process_set, config, model, samples, start, reporter)


def position_after(samples: Samples, batch: int, start: Position, steps: int) -> Position:
    """How far in `samples` `steps` steps of `batch` sequences come from `start`."""
    sampler = ShardedSampler(len(samples), batch, rank=0, size=1, seed=0)
    for _ in range(steps):
        start = sampler.following(start)
    return start


def _train(
    world: World, process_set: object, config: TrainConfig, model: LanguageModel, samples: Samples, start: Position,
    reporter: Reporter,
) -> Position:  # fmt: skip
    def report(progress: Progress) -> None:
        reporter.progress(progress.step, progress.advanced, progress.loss, "nats/token", progress.tokens_per_s)

    def after_step(step: int) -> None:
        for line in loop.take_news():
            reporter.say(line)
        if config.check_every and step % config.check_every == 0:
            check_drift(world, loop.aggregation, model, step)

    optimizer = DistributedOptimizer(
        make_optimizer(model, config), model.named_parameters(), compression=config.compression,
        strategy=config.strategy, process_set=process_set,
    )  # fmt: skip
    loop = Loop(world, config, model, WeighedAggregation(optimizer), samples, position=start)
    seed_generators(config.seed + 1 + world.rank)
    begun = time.perf_counter()
    reporter.begin()
    loop.run(report, after_step)
    reporter.close()
    reporter.say(f"  done in {duration(time.perf_counter() - begun)}")
    return loop.position
