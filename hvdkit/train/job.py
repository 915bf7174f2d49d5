"""One training run from configuration to summary: builds the parts, runs the loop, saves and reports."""

import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hvdkit.checkpoint import Saver, find_model, random_state, seed_generators
from hvdkit.data import Position, Tokenizer, has_tokenizer, load_tokenizer, prepare_corpus
from hvdkit.data.tokenizer import save_tokenizer
from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.models import (
    LanguageModel,
    build_model,
    copied_state,
    count_parameters,
    generate,
    load_model,
    load_weights,
    write_model,
)
from hvdkit.runtime import RESUME_STATUS, World, gather_objects, launch_info, require_world, together
from hvdkit.train.aggregation import Aggregation, ShardedAggregation, WeighedAggregation
from hvdkit.train.agreement import check_same_model, check_same_start
from hvdkit.train.config import TrainConfig
from hvdkit.train.drift import check_drift
from hvdkit.train.ending import EndedEarlyError, EndRequest
from hvdkit.train.loop import Loop, Progress
from hvdkit.train.loss import evaluate
from hvdkit.train.metrics import Metrics, read_metrics
from hvdkit.train.picture import draw_losses
from hvdkit.train.report import Reporter, duration, plural, size
from hvdkit.train.resume import Resumed
from hvdkit.train.room import check_room
from hvdkit.train.run_folder import make_run_folder

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

    def cut(shares: bool) -> Any:
        stage: Any = config.sharding
        return shard(model, optimizer, stage, strategy=config.strategy, shared_weights=shares)[1]

    try:
        sharded = cut(_shares(require_world(), config))
    except NoRoomError:  # on all ranks, before anything was changed
        sharded = cut(False)
    return ShardedAggregation(model, sharded, config.sharding)


def _shares(world: World, config: TrainConfig) -> bool:
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


class Job:
    """A run on all ranks. Making it is collective and checks everything that can be checked before training."""

    def __init__(self, world: World, config: TrainConfig, aggregate: Aggregate = aggregate_with_hvdkit) -> None:
        self.world, self.config = world, config
        check_same_start(world, config)
        check_aggregation(world, config)
        torch.set_num_threads(config.threads or world.threads)
        notes: list[str] = []
        self.resumed = Resumed(world, config.resume, notes.append) if config.resume else None
        if self.resumed and self.resumed.step >= config.steps and not launch_info().attempt:
            raise ConfigError(
                f"{self.resumed.folder} has done {self.resumed.step} steps of --steps {config.steps}: "
                "there is nothing left to do; give a larger --steps to go on"
            )
        init_from = self.resumed.checkpoint.model if self.resumed else config.init_from
        source = together(world, lambda: find_model(Path(init_from))) if init_from else None
        tokenizer = together(world, lambda: tokenizer_of(source))
        step = self.resumed.step if self.resumed else 0
        self.reporter = Reporter(world.is_root, launch_info().is_launched, config.steps, step)
        for note in notes:
            self.reporter.say(note)
        if self.resumed:
            self.resumed.say = self.reporter.say
        self.corpus = prepare_corpus(
            world, config.corpus, context=config.context, say=self.reporter.say, tokenizer=tokenizer
        )
        seed_generators(config.seed)
        self.model = together(world, lambda: self._build(source))
        check_same_model(world, self.model)
        together(world, lambda: check_room(world, self.model, config.sharding, shared_weights=_shares(world, config)))
        self.samples = self.corpus.samples("train", self.model.objective, config.context, config.seed)
        self.held_out = self.corpus.samples("validation", self.model.objective, config.context, config.seed)
        self.folder = self._make_folder()
        if self.resumed and self._chooses():
            self.resumed.choose_as_then()
        self.aggregation = aggregate(make_optimizer(self.model, config), self.model, config)
        position = self.resumed.position if self.resumed else Position()
        self.loop = Loop(world, config, self.model, self.aggregation, self.samples, step, position)
        seed_generators(config.seed + 1 + world.rank)  # dropout differs per rank, weights do not
        if self.resumed:
            self.resumed.restore(self.aggregation)
        self.saver = Saver(
            world, self.folder / "checkpoints", keep=config.keep, keep_best=config.keep_best,
            background=config.checkpoint_async, config=config.saved_values(),
        )  # fmt: skip
        self._end = EndRequest(world)
        self._is_per_byte = self.model.objective == "causal"
        self.unit = "nats/byte" if self._is_per_byte else "nats/token"
        self.validation_loss = float("nan")
        self._evaluated_at: int | None = None
        self.first_step_s = 0.0

    def run(self) -> float:
        """Train, save and report; returns the final validation loss in `unit`. Collective."""
        started = time.monotonic() - _process_age_s()
        metrics = None
        if self.world.is_root:
            metrics = Metrics(self.folder, self.config.tensorboard, self.loop.step)
            self.config.write(self.folder / "config.yaml")
        self._introduce()

        def report(progress: Progress) -> None:
            loss = self._in_unit(progress.loss)
            self.reporter.progress(progress.step, progress.advanced, loss, self.unit, progress.tokens_per_s)
            if metrics is not None:
                more = {"skipped": progress.skipped} if self.config.on_nonfinite == "skip" else {}
                metrics.write(
                    progress.step,
                    **({} if math.isnan(loss) and progress.skipped else {"loss": loss}),
                    lr=progress.learning_rate,
                    tokens_per_s=round(progress.tokens_per_s),
                    bytes_per_step=progress.bytes_per_step,
                    tokens=self._tokens_seen(),
                    seconds=round(self.loop.timing.seconds, 3),
                    **more,
                )

        def after_step(step: int) -> None:
            last = step == self.config.steps
            for line in (*self.aggregation.news(), *self.loop.take_news()):
                self.reporter.say(line)
            if not self.first_step_s:
                self.first_step_s = time.monotonic() - started
            if self.config.check_every and step % self.config.check_every == 0:
                check_drift(self.world, self.aggregation, self.model, step)
            if last or (self.config.eval_every and step % self.config.eval_every == 0):
                self._evaluate(step, metrics)
            if last or (self.config.checkpoint_every and step % self.config.checkpoint_every == 0):
                self.save()
            if not last and self._may_end_at(step) and (signal := self._end.agreed()):
                self._end_early(signal)

        if self.loop.step == self.config.steps or (self.resumed is None and self.config.eval_every):
            self._evaluate(self.loop.step, metrics)
        self.reporter.begin()
        with self._end.heeded():
            self.loop.run(report, after_step)
        self.saver.finish()
        self.reporter.close()
        if metrics is not None:
            metrics.close()
        lines = [*self.aggregation.summarise(), *self.saver.lines()]
        with self.aggregation.whole():
            self._summarise(time.monotonic() - started, lines)
        return self.validation_loss

    def save(self) -> Path:
        """Save a checkpoint of this moment and drop the oldest. Collective."""
        from hvdkit.collectives import saved_choice

        position = self.loop.position
        common, own = self.aggregation.state()
        common = {
            "step": self.loop.step,
            "position": (position.epoch, position.consumed),
            "aggregation": common,
            "collectives": saved_choice(self.world),
        }
        own = {"aggregation": own, "random": random_state(self.world.device)}
        loss = self.validation_loss if self._evaluated_at == self.loop.step else None
        with self.aggregation.whole():
            copies = copied_state(self.model) if self.saver.background and self.world.is_root else None

            def write(folder: Path) -> None:
                write_model(folder, self.model, copies)
                save_tokenizer(folder, self.corpus.tokenizer)

            model_bytes = sum(parameter.nbytes for parameter in self.model.parameters())
            return self.saver.save(
                self.loop.step, common, own, write, model_bytes=model_bytes, validation_loss=loss
            )  # fmt: skip

    def _may_end_at(self, step: int) -> bool:
        """Whether ranks meet here to agree on an end: in every step where they meet anyway, else now and then."""
        return self.config.local == "none" or step % self.config.log_every == 0

    def _end_early(self, signal: str) -> None:
        """Save what there is, and say how to go on. Collective."""
        if self.saver.last_step != self.loop.step:
            self.save()
        self.saver.finish()
        self.reporter.close()
        self.reporter.say(
            f"{signal} at step {self.loop.step}: saved, go on with `--resume {self.folder}` (status {RESUME_STATUS})"
        )
        raise EndedEarlyError

    def _build(self, source: Path | None) -> LanguageModel:
        is_own = self.resumed and not (self.config.init_from or Path(self.config.model).is_dir())
        model = initial_model(self.config, self.corpus.tokenizer, None if is_own else source)
        if self.resumed and is_own:
            load_weights(model, self.resumed.checkpoint.model)
        return model.to(self.world.device)

    def _make_folder(self) -> Path:
        """The folder of this run, made or gone on in. Collective."""
        if self.resumed is None or self.config.out is not None:
            return make_run_folder(self.world, self.config.out, is_ours=launch_info().attempt > 0)
        resumed = self.resumed
        folder = together(self.world, resumed.run_folder)
        together(self.world, lambda: resumed.clear_the_way() if self.world.is_root else None)
        return folder

    def _chooses(self) -> bool:
        """Whether collectives are chosen among hvdkit's own."""
        from hvdkit.collectives import why_no_direct

        world = self.world
        by_engine = self.config.strategy == "horovod" or world.device.type != "cpu" or why_no_direct(world) is not None
        return world.size > 1 and not by_engine

    def _evaluate(self, step: int, metrics: Metrics | None) -> None:
        autocast = self.config.precision == "bf16"
        batches = 0 if step == self.config.steps else self.config.eval_batches
        with self.aggregation.averaged():
            total = evaluate(
                self.world, self.model, self.held_out, self.config.batch_size, batches=batches, autocast=autocast,
                runs_together=self.aggregation.runs_together,
            )  # fmt: skip
        self.validation_loss, self._evaluated_at = self._in_unit(total.mean()), step
        self.reporter.say(f"step {step}  validation loss {self.validation_loss:.4f} {self.unit}")
        if metrics is not None:
            seconds = round(self.loop.timing.seconds, 3)  # of training, without this
            metrics.write(step, validation_loss=self.validation_loss, validation_targets=total.targets, seconds=seconds)

    def _tokens_seen(self) -> int:
        position = self.loop.position
        return (position.epoch * len(self.samples) + position.consumed) * self.config.context

    def _in_unit(self, nats_per_token: float) -> float:
        return self.corpus.nats_per_byte(nats_per_token) if self._is_per_byte else nats_per_token

    def _introduce(self) -> None:
        world, config = self.world, self.config
        hosts = len(set(gather_objects(world, world.hostname)))
        batch = config.global_batch(world.size)
        say = self.reporter.say
        say(f"hvdkit train: {self.model.name}, {count_parameters(self.model):,} parameters, {config.precision}")
        for line in self.corpus.describe():
            say(line)
        say(
            f"{plural(world.size, 'rank')} on {plural(hosts, 'host')}, Horovod over {world.backend}, "
            f"{world.device.type}, {plural(torch.get_num_threads(), 'thread')} per rank"
        )
        say(
            f"{batch} sequences of {config.context} = {batch * config.context:,} tokens a step, {config.steps} steps, "
            f"peak learning rate {config.peak_lr(world.size):.3g}"
        )
        say(f"--scaling {config.scaling}: {_SCALING[config.scaling]}")
        for line in self.aggregation.describe():
            say(line)
        if self.resumed:
            say(f"continued from {self.resumed.folder} at step {self.loop.step}")
        say(f"run folder: {self.folder}")

    def _summarise(self, seconds: float, lines: list[str]) -> None:
        timing = self.loop.timing
        peak = max(gather_objects(self.world, _peak_memory(self.world)))
        if not self.world.is_root:
            return
        say = self.reporter.say
        say(f"\ndone: {self.loop.step} steps, {duration(seconds)} (first step after {duration(self.first_step_s)})")
        if timing.steps:
            say(
                f"  {timing.tokens / timing.seconds:,.0f} tokens/s, "
                f"{timing.seconds / timing.steps * 1e3:.0f} ms a step, "
                f"{timing.exposed_seconds / timing.seconds:.0%} of it exposed communication (rank 0), "
                f"{size(timing.bytes_sent / timing.steps)} sent per step and rank"
            )
        say(f"  peak memory {size(peak)} per rank; validation loss {self.validation_loss:.4f} {self.unit}")
        if self.loop.skipped:
            what = "steps" if self.config.local == "none" else "steps of single ranks"
            say(f"  {self.loop.skipped} {what} left out: their gradients were not finite")
        for line in lines:
            say(f"  {line}")
        picture = self.folder / "loss.png"
        if draw_losses(picture, f"{self.model.name}, {self.world.size} ranks", self.unit, read_metrics(self.folder)):
            say(f"  loss curves: {picture}")
        if self.model.objective == "causal" and self.config.sample_tokens:
            text = generate(self.model, self.corpus.tokenizer, self.config.sample_prompt, self.config.sample_tokens)
            say("\n".join(["  a sample:", *(f"    {line}" for line in text.splitlines())]))
        say(f"  go on with `hvdkit generate {self.folder}` or `--resume {self.folder}`")


_SCALING = {
    "weak": "more ranks make the global batch larger, the learning rate stays",
    "weak-linear-lr": "more ranks make the global batch larger and multiply the learning rate",
    "weak-sqrt-lr": "more ranks make the global batch larger and multiply the learning rate by their square root",
    "strong": "more ranks divide the same global batch, the learning rate stays",
}


def tokenizer_of(source: Path | None) -> Tokenizer | None:
    """The tokenizer of the model in the folder `source`, if it has one."""
    return load_tokenizer(source) if source is not None and has_tokenizer(source) else None


def initial_model(config: TrainConfig, tokenizer: Tokenizer, source: Path | None) -> LanguageModel:
    """The model that training starts from, on the CPU: that in the folder `source`, or a new one, with weights from
    torch's generator. Raises CheckpointError if it does not take the run's tokens and sequences."""
    if source is not None:
        model = load_model(source)
    else:
        model = build_model(config.model, tokenizer.vocab_size, config.context, tokenizer)
    if model.vocab_size < tokenizer.vocab_size or model.context < config.context:
        raise CheckpointError(
            f"{source}: its model takes {model.vocab_size} token ids and sequences of {model.context}, the run has "
            f"{tokenizer.vocab_size} and {config.context}; use --context {model.context} or less"
        )
    return model.to(torch.float64 if config.precision == "float64" else torch.float32)


def make_optimizer(model: LanguageModel, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays matrices only, fused where this torch has a fused AdamW for the device."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": config.lr, "betas": (0.9, config.beta2)}
    try:  # with copies, since a constructor that raises has written its options into them
        return torch.optim.AdamW([dict(group) for group in groups], **options, fused=True)
    except RuntimeError:  # CPUs before torch 2.4
        return torch.optim.AdamW(groups, **options)


def _process_age_s() -> float:
    """Seconds since this process started, on a clock that is never set."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _peak_memory(world: World) -> int:
    """Bytes: of the GPU where there is one, else resident."""
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
