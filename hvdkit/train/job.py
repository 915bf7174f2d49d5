"""One training run from configuration to summary: builds the parts, runs the loop, saves and reports."""

import math
import os
import time
from pathlib import Path

import torch

from hvdkit.checkpoint import Saver, find_model, random_state, seed_generators, set_aside
from hvdkit.data import Position, prepare_corpus
from hvdkit.data.tokenizer import save_tokenizer
from hvdkit.errors import ConfigError
from hvdkit.models import LanguageModel, copied_state, load_weights, write_model
from hvdkit.runtime import RESUME_STATUS, World, launch_info, together
from hvdkit.train.aggregate import Aggregate, aggregate_with_hvdkit, check_aggregation, shares_weights
from hvdkit.train.agreement import check_same_model, check_same_start
from hvdkit.train.building import initial_model, make_optimizer, tokenizer_of
from hvdkit.train.config import TrainConfig
from hvdkit.train.drift import check_drift
from hvdkit.train.ending import EndedEarlyError, EndRequest
from hvdkit.train.loop import Loop, Progress
from hvdkit.train.loss import evaluate
from hvdkit.train.metrics import Metrics
from hvdkit.train.report import Reporter, duration
from hvdkit.train.resume import Resumed
from hvdkit.train.room import check_room
from hvdkit.train.run_folder import Claim, make_run_folder
from hvdkit.train.summary import introduce, summarise


class Job:
    """A run on all ranks. Making it is collective and checks everything that can be checked before training."""

    def __init__(
        self, world: World, config: TrainConfig, aggregate: Aggregate = aggregate_with_hvdkit,
        end: EndRequest | None = None,
    ) -> None:  # fmt: skip
        self.world, self.config = world, config
        check_same_start(world, config)
        check_aggregation(world, config)
        torch.set_num_threads(config.threads or world.threads)
        notes: list[str] = []
        self.resumed = Resumed(world, config.resume, notes.append) if config.resume else None
        if self.resumed and self.resumed.step > config.steps:
            raise ConfigError(
                f"{self.resumed.folder} has done {self.resumed.step} steps, more than --steps {config.steps}: "
                "give a larger --steps to go on"
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
            for line in self.resumed.changes(config):
                self.reporter.say(line)
        elif launch_info().attempt:
            self.reporter.say(f"no checkpoint in {config.out}: the run begins anew")
        self.corpus = prepare_corpus(
            world, config.corpus, context=config.context, say=self.reporter.say, tokenizer=tokenizer
        )
        seed_generators(config.seed)
        self.model = together(world, lambda: self._build(source))
        check_same_model(world, self.model)
        shares = together(world, lambda: shares_weights(world, config))
        together(world, lambda: check_room(world, self.model, config.sharding, shared_weights=shares))
        self.samples = self.corpus.samples("train", self.model.objective, config.context, config.seed)
        self.held_out = self.corpus.samples("validation", self.model.objective, config.context, config.seed)
        self.folder = self._make_folder()
        self._claim = together(world, lambda: Claim(self.folder) if world.is_root else None)
        if self.resumed and self._chooses():
            self.resumed.choose_as_then()
        self.aggregation = aggregate(make_optimizer(self.model, config), self.model, config)
        position = self.resumed.position if self.resumed else Position()
        self.loop = Loop(world, config, self.model, self.aggregation, self.samples, step, position)
        seed_generators(config.seed + 1 + world.rank)  # dropout differs per rank, weights do not
        if self.resumed:
            self.resumed.restore(self.aggregation, self.loop)
        self.saver = Saver(
            world, self.folder / "checkpoints", keep=config.keep, keep_best=config.keep_best,
            background=config.checkpoint_async, config=config.saved_values(),
        )  # fmt: skip
        self._end = end
        self._rounds = 0
        self._is_per_byte = self.model.objective == "causal"
        self.unit = "nats/byte" if self._is_per_byte else "nats/token"
        self.validation_loss = float("nan")
        self._evaluated_at: int | None = None
        self._samples_per_s = 0.0
        self.first_step_s = 0.0

    def run(self) -> float:
        """Train, save and report; returns the final validation loss in `unit`. Collective."""
        started = time.monotonic() - _process_age_s()
        metrics = None
        if self.world.is_root:
            metrics = Metrics(self.folder, self.config.tensorboard, self.loop.step)
            self.config.write(self.folder / "config.yaml")
        introduce(self)

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
            if self.config.eval_every and (last or step % self.config.eval_every == 0):
                self._evaluate(step, metrics)
            if last or (self.config.checkpoint_every and step % self.config.checkpoint_every == 0):
                self.save()
            if not last:
                self._end_if_told(step)

        if self.resumed is None and self.config.eval_every:
            self._evaluate(self.loop.step, metrics)
        if self.loop.step < self.config.steps:
            self.reporter.begin()
            self._end_if_told(0)
            self.loop.run(report, after_step)
        else:
            self.reporter.say(f"all {self.loop.step} steps are done (a larger --steps would go on)")
            if self.resumed and self.resumed.folder.parent != self.folder / "checkpoints":
                self.save()
        self.saver.finish()
        self._evaluate_on_all(metrics)
        self.reporter.close()
        if metrics is not None:
            metrics.close()
        lines = [*self.aggregation.summarise(), *self.saver.lines()]
        with self.aggregation.whole():
            summarise(self, time.monotonic() - started, lines)
        if self._claim is not None:
            self._claim.release()
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
        own = {"aggregation": own, "random": random_state(self.world.device), "loop": self.loop.state()}
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

    def _end_if_told(self, step: int, *, always: bool = False) -> None:
        """Save, say how to go on, and raise EndedEarlyError, if a rank was told to end.

        Collective wherever ranks meet anyway: after every step, with local updates after every round and report. Under
        Gloo, where agreeing takes milliseconds and not microseconds, after every report. Or `always`.
        """
        rounds = self.aggregation.meetings()
        is_cheap = self.world.comm is not None or self.world.size == 1
        meet = always or (is_cheap and (rounds is None or rounds != self._rounds)) or step % self.config.log_every == 0
        self._rounds = rounds or 0
        if self._end is None or not meet or (signal := self._end.agreed(self.world)) is None:
            return
        is_saved = self.resumed is not None and self.resumed.step == self.loop.step
        if self.saver.last_step != self.loop.step and not (is_saved and self.config.out is None):
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
            is_ours = launch_info().attempt > 0
            folder = make_run_folder(self.world, self.config.out, is_ours=is_ours)
            if is_ours and self.resumed is None:
                together(self.world, lambda: set_aside(folder / "checkpoints") if self.world.is_root else None)
            return folder
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

    def _evaluate_on_all(self, metrics: Metrics | None) -> None:
        """The last evaluation, on everything that is held out. Collective."""
        if self._evaluated_at == self.loop.step and self._part() == len(self.held_out):
            return
        how_long = f", about {duration(len(self.held_out) / self._samples_per_s)}" if self._samples_per_s else ""
        self.reporter.say(f"evaluating on all {len(self.held_out) * self.config.context:,} tokens held out{how_long}")
        self._evaluate(self.loop.step, metrics, on_all=True)

    def _part(self) -> int:
        """How many of the samples held out an evaluation during the run takes."""
        count = self.config.eval_batches * self.config.batch_size
        return min(count, len(self.held_out)) if count else len(self.held_out)

    def _evaluate(self, step: int, metrics: Metrics | None, *, on_all: bool = False) -> None:
        begun = time.perf_counter()
        with self.aggregation.averaged():
            total = evaluate(
                self.world, self.model, self.held_out, self.config.batch_size,
                batches=0 if on_all else self.config.eval_batches, autocast=self.config.precision == "bf16",
                runs_together=self.aggregation.runs_together,
                between=(lambda: self._end_if_told(step, always=True)) if on_all else None,
            )  # fmt: skip
        self._samples_per_s = self._part() / (time.perf_counter() - begun)
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


def _process_age_s() -> float:
    """Seconds since this process started, on a clock that is never set; 0 where the system does not tell."""
    if not Path("/proc/self/stat").exists():
        return 0.0
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
