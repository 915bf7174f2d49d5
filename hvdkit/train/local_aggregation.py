"""Local updates in the training loop: gradients stay on their rank, and weights come together once in a round.

Every rank does the same number of steps. What is evaluated, saved as the model and sampled is the outer model, which
is what the DiLoCo paper reports; a checkpoint also holds every rank's own weights and optimizer, so that a run goes on
in the middle of a round.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from hvdkit.local import Rounds, diloco_optimizer
from hvdkit.models import LanguageModel
from hvdkit.optim import DistributedOptimizer
from hvdkit.train.aggregation import SavedState, State
from hvdkit.train.config import TrainConfig
from hvdkit.train.weighed_aggregation import WeighedAggregation

_SAME_ON_ALL = ("outer", "outer_optimizer")


class LocalAggregation(WeighedAggregation):
    """Synchronous for `--local-after` steps, then in rounds."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: LanguageModel, config: TrainConfig) -> None:
        super().__init__(optimizer)
        self._model, self._config = model, config
        parameters = self._parameters()
        outer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=1.0)  # takes the mean of the weights
        if config.local == "diloco":
            outer = diloco_optimizer(parameters, config.outer_lr, config.outer_momentum)
        if config.local_after:
            DistributedOptimizer(
                optimizer, model.named_parameters(), compression=config.compression, strategy=config.strategy
            )
        self._outer = outer
        self._rounds = Rounds(
            model, optimizer, outer, sync_every=config.sync_every, fragments=config.fragments,
            overlap_steps=config.overlap_steps, compression=config.outer_compression, level=config.local_level,
            strategy=config.strategy,
        )  # fmt: skip
        self._in_rounds = False
        self._local_steps = ExitStack()
        self._targets = 0
        if not config.local_after:
            self._begin()

    def _begin(self) -> None:
        """From here on steps are local. Collective."""
        self._in_rounds = True
        if self._config.local_after:
            self._local_steps.enter_context(self.optimizer.no_sync())
        self._rounds.__enter__()

    def _parameters(self) -> list[torch.Tensor]:
        """All that the inner optimizer steps."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def _is_distributed(self) -> bool:
        """Whether gradients are averaged over ranks (before the rounds, or within a node)."""
        return hasattr(self.optimizer, "weigh") and not (self._in_rounds and self._config.local_after)

    @property
    def gradients_agree(self) -> bool:
        """See `Aggregation`."""
        return not self._in_rounds

    @property
    def shares(self) -> Sequence[float] | None:
        """See `Aggregation`."""
        return self._rounds.shares if self._config.pace == "proportional" else None

    def backward(self, mean_loss: torch.Tensor, n_targets: int, *, is_last: bool) -> None:
        """See `Aggregation`."""
        self._targets += n_targets
        if self._is_distributed:
            super().backward(mean_loss, n_targets, is_last=is_last)
        else:
            (mean_loss * n_targets).backward()

    def finish(self) -> None:
        """See `Aggregation`, but that gradients differ between ranks in a round."""
        if self._is_distributed:
            super().finish()
        elif self._targets:
            gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
            torch._foreach_div_(gradients, float(self._targets))

    def gradients(self) -> list[tuple[str, torch.Tensor]]:
        """See `Aggregation`. In a round this rank's own."""
        trained = {id(parameter) for parameter in self._parameters()}
        named = [(name, p) for name, p in self._model.named_parameters() if id(p) in trained]
        return [(name, parameter.grad) for name, parameter in named if parameter.grad is not None]

    def remember(self) -> None:
        """See `Aggregation`."""
        if self._is_distributed:
            super().remember()

    def skip(self) -> None:
        """See `Aggregation`. In a round the step counts, with no weight, so that all ranks meet when it ends."""
        if not self._in_rounds:
            self._targets = 0
            super().skip()
            return
        for parameter in self._parameters():
            parameter.grad = None
        self._targets = 0
        self.step()

    def step(self) -> None:
        """See `Aggregation`."""
        if self._in_rounds:
            self._rounds.count(self._targets)
        self._targets = 0
        self.optimizer.step()

    def reached(self, step: int) -> None:
        """See `Aggregation`."""
        if not self._in_rounds and step >= self._config.local_after:
            self._begin()
        if step == self._config.steps:
            self._rounds.synchronize()

    def meetings(self) -> int | None:
        """See `Aggregation`."""
        return self._rounds.statistics.rounds if self._in_rounds else None

    def news(self) -> list[str]:
        """See `Aggregation`."""
        told, self._rounds.news = self._rounds.news, []
        return told

    def state(self) -> tuple[State, State]:
        """See `Aggregation`."""
        if not self._in_rounds:
            return super().state()
        rounds = self._rounds.state_dict()
        same = {key: rounds.pop(key) for key in _SAME_ON_ALL}
        # A copy, since the model takes the outer weights while it is saved.
        weights = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        worker = {"weights": weights, "inner": self.optimizer.state_dict(), "rounds": rounds}
        return {"rounds": same}, {"worker": worker}

    def restore(self, saved: SavedState) -> None:
        """See `Aggregation`; takes what synchronous training saved, too."""
        if "rounds" not in saved.common:
            super().restore(saved)
            return
        if not self._in_rounds:
            self._begin()
        worker = saved.own(saved.rank % saved.size)["worker"]
        self.optimizer.load_state_dict(worker["inner"])
        goes_on = saved.size == saved.ranks
        options = [
            {key: value for key, value in group.items() if key != "params"} for group in self._outer.param_groups
        ]
        self._rounds.load_state_dict({**worker["rounds"], **saved.common["rounds"]}, outer_only=not goes_on)
        for group, configured in zip(self._outer.param_groups, options, strict=True):
            group.update(configured)  # of the outer optimizer, momentum alone is the run's that was saved
        if goes_on:
            self._model.load_state_dict(worker["weights"])
        else:
            self._rounds.news.append(
                f"saved by {saved.size} workers with weights of their own, continued by {saved.ranks} from the outer "
                "model"
            )

    def averaged(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        return self._rounds.outer_model() if self._in_rounds else nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        """See `Aggregation`."""
        return self.averaged()

    def describe(self) -> list[str]:
        """See `Aggregation`."""
        config = self._config
        every = f"{config.sync_every} steps" if str(config.sync_every).isdigit() else str(config.sync_every)
        outer = "the mean of the ranks' weights"
        if config.local == "diloco":
            outer = f"a step of SGD, learning rate {config.outer_lr:g}, Nesterov momentum {config.outer_momentum:g}"
        after = f", after {config.local_after} synchronous steps" if config.local_after else ""
        lines = [f"--local {config.local}: rounds of {every}{after}, each ends with {outer}"]
        if config.local_level == "nodes":
            lines.append("the ranks of a node are one worker: they average gradients in every step")
        if config.pace == "proportional":
            lines.append("--pace proportional: each rank gets a part of the global batch in proportion to its speed")
        return lines

    def summarise(self) -> list[str]:
        """See `Aggregation`."""
        return self._rounds.statistics.lines()

    def cost(self) -> tuple[float, float]:
        """See `Aggregation`."""
        sent, waited = super().cost() if hasattr(self.optimizer, "weigh") else (0.0, 0.0)
        return sent + self._rounds.statistics.bytes_sent, waited + self._rounds.statistics.waited_s
