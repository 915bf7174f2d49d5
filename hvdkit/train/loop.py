"""The training loop: the same on every rank, and the same result for any number of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hvdkit.data import Batch, Position, Samples, ShardedSampler
from hvdkit.models import LanguageModel
from hvdkit.runtime import World
from hvdkit.train.aggregation import Aggregation
from hvdkit.train.config import TrainConfig
from hvdkit.train.loss import LossSum, mean_loss, over_ranks
from hvdkit.train.nonfinite import GradientCheck
from hvdkit.train.schedule import learning_rate


@dataclass
class Timing:
    """What the steps after the first cost (the first one also warms up)."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    """Over all ranks."""
    bytes_sent: float = 0.0
    exposed_seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """What the loop reports every `log_every` steps, equal on all ranks but for `bytes_per_step`."""

    step: int
    """Steps done."""
    advanced: int
    """Steps since the last report."""
    loss: float
    """Mean over all targets since the last report, nats per token."""
    learning_rate: float
    tokens_per_s: float
    bytes_per_step: float
    """Bytes that this rank sent for gradients, mean since the last report."""
    skipped: int = 0
    """Steps that were left out so far; of all ranks together where each does its own steps."""


@dataclass
class Loop:
    """Trains `model` on `samples` from `step` and `position` on."""

    world: World
    config: TrainConfig
    model: LanguageModel
    aggregation: Aggregation
    samples: Samples
    step: int = 0
    position: Position = field(default_factory=Position)
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        self.sampler = ShardedSampler(
            len(self.samples),
            self.config.global_batch(self.world.size),
            self.world.rank,
            self.world.size,
            self.config.seed,
        )
        self.check = GradientCheck(self.world, self.config.on_nonfinite, self.config.clip_norm)
        self.skipped = 0
        self._window = LossSum()
        self._micro_batch = self.config.micro_batch(self.world.size)
        self._autocast = self.config.precision == "bf16"

    def run(self, report: Callable[[Progress], None], after_step: Callable[[int], None]) -> None:
        """Train to the last step. Collective. `after_step(steps done)` evaluates and saves when it is time."""
        self.model.train()
        started, tokens, sent = time.perf_counter(), 0, self.aggregation.cost()[0]
        timed = 0
        self.aggregation.reached(self.step)
        while self.step < self.config.steps:
            rate = self._set_learning_rate()
            window_part, step_tokens = self._one_step()
            self.aggregation.reached(self.step)
            self._window.add_sum(window_part)
            tokens += step_tokens
            timed += 1
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                together = over_ranks(self.world, self._window)
                speed = tokens / (time.perf_counter() - started)
                sent_by_now = self.aggregation.cost()[0]
                self._count_skipped(self._window.skipped, together.skipped)
                per_step = (sent_by_now - sent) / timed
                report(Progress(self.step, timed, together.mean(), rate, speed, per_step, self.skipped))
                self._window = LossSum()
                timed, tokens, sent, started = 0, 0, sent_by_now, time.perf_counter()
            paused = time.perf_counter()
            after_step(self.step)
            started += time.perf_counter() - paused  # evaluation and saving are not training time

    def state(self) -> dict[str, float]:
        """What this rank needs to report after these steps as if the run had never stopped."""
        check = {"check_skipped": self.check.skipped, "check_in_a_row": self.check.in_a_row}
        return {**vars(self._window), "skipped_before": self.skipped, **check}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from the `state()` of this rank."""
        self.skipped = int(state["skipped_before"])
        self.check.skipped, self.check.in_a_row = int(state["check_skipped"]), int(state["check_in_a_row"])
        self._window = LossSum(state["nats"], int(state["targets"]), int(state["skipped"]))

    def take_news(self) -> list[str]:
        """What a user should know of the steps since the last call, in lines."""
        told, self.check.news = self.check.news, []
        return told

    def _count_skipped(self, mine: int, everyones: int) -> None:
        if self.aggregation.gradients_agree:
            self.skipped += mine
            return
        self.skipped += everyones
        if everyones > mine:
            self.check.news.append(
                f"step {self.step}: since the last report other ranks left out {everyones - mine} of their steps, "
                "whose gradients were not finite"
            )

    def _one_step(self) -> tuple[LossSum, int]:
        begun = time.perf_counter()
        bytes_before, exposed_before = self.aggregation.cost()
        indices = self.sampler.indices(self.position, self.aggregation.shares)
        batch = self.samples.batch(indices, self.position.epoch)
        step_tokens = len(self.sampler.global_indices(self.position)) * self.samples.context
        self.check.begin_step(self.aggregation)
        loss_sum = self._accumulate(batch)
        self.aggregation.finish()
        if self.check.admits(self.aggregation, self.step + 1, loss_sum.mean() if loss_sum.targets else 0.0):
            self.aggregation.step()
        else:
            self.aggregation.skip()
            loss_sum = LossSum(skipped=1)
        self.position = self.sampler.following(self.position)
        self.step += 1
        if self.timing.steps or self.step > 1:
            bytes_sent, exposed = self.aggregation.cost()
            self.timing.bytes_sent += bytes_sent - bytes_before
            self.timing.exposed_seconds += exposed - exposed_before
            self.timing.seconds += time.perf_counter() - begun
            self.timing.tokens += step_tokens
            self.timing.steps += 1
        return loss_sum, step_tokens

    def _accumulate(self, batch: Batch) -> LossSum:
        self.aggregation.optimizer.zero_grad()
        total = LossSum()
        parts = [part for part in batch.split(self._micro_batch) if part.n_targets]
        idle_passes = self._most_passes() - len(parts) if self.aggregation.runs_together else 0
        passes = len(parts) + idle_passes
        for number, part in enumerate(parts):
            loss = mean_loss(self.model, part.to(self.world.device), self._autocast)
            self.aggregation.backward(loss, part.n_targets, is_last=number == passes - 1)
            total.add(loss, part.n_targets)
        for number in range(len(parts), passes):
            self.aggregation.backward(self._idle_loss(), 0, is_last=number == passes - 1)
        return total

    def _most_passes(self) -> int:
        """How often the rank with the most samples runs the model in this step."""
        rows = -(-len(self.sampler.global_indices(self.position)) // self.world.size)
        return max(1, -(-rows // self._micro_batch))

    def _idle_loss(self) -> torch.Tensor:
        """A loss of 0 that went through the whole model, on a rank that has no samples left."""
        first = self.sampler.global_indices(self.position)[:1]
        batch = self.samples.batch(first, self.position.epoch).to(self.world.device)
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            logits: torch.Tensor = self.model(batch.inputs)
        return logits.float().sum() * 0.0

    def _set_learning_rate(self) -> float:
        rate = learning_rate(
            self.step,
            peak=self.config.peak_lr(self.world.size),
            warmup_steps=self.config.warmup_steps,
            steps=self.config.steps,
            floor=self.config.min_lr,
        )
        for group in self.aggregation.optimizer.param_groups:
            group["lr"] = rate
        return rate
