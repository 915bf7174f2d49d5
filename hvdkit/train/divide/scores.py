"""The losses that are compared: of a model's weights, or of an ensemble, on the held-out text of each domain."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hvdkit.data import Corpus, Samples, evaluation_indices
from hvdkit.merge import Ensemble
from hvdkit.merge.states import State
from hvdkit.models import LanguageModel, load_tensors
from hvdkit.runtime import World
from hvdkit.train.loss import LossSum, evaluate, mean_loss

_SAMPLES_AT_ONCE = 16


@dataclass(frozen=True)
class Row:
    """A line of the table: the loss on each domain, and what should be known of how the model was made."""

    name: str
    losses: tuple[float, ...]
    note: str = ""

    @property
    def mean(self) -> float:
        """Over the domains, each counted once."""
        return sum(self.losses) / len(self.losses)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "mean": self.mean}


@dataclass(frozen=True)
class Judge:
    """Measures on `held_out`, one part per domain, by putting weights into `model`."""

    model: LanguageModel
    corpora: Sequence[Corpus]
    held_out: Sequence[Samples]
    autocast: bool = False

    @property
    def unit(self) -> str:
        """Of all losses."""
        return "nats/byte" if self.model.objective == "causal" else "nats/token"

    def of_state(self, world: World, state: State) -> tuple[float, ...]:
        """The loss of these weights on each domain. Collective: text is divided over the ranks of `world`."""
        load_tensors(self.model, state, "the merged model")
        found = [
            evaluate(world, self.model, samples, _SAMPLES_AT_ONCE, autocast=self.autocast) for samples in self.held_out
        ]
        return self._in_unit(found)

    @torch.no_grad()
    def of_ensemble(self, ensemble: Ensemble) -> tuple[float, ...]:
        """The same for an ensemble. Collective: its submodels are on the ranks, so every rank goes through all text."""
        found = []
        for samples in self.held_out:
            total = LossSum()
            for indices in evaluation_indices(len(samples), _SAMPLES_AT_ONCE, 0, 1):
                batch = samples.batch(indices).to(next(self.model.parameters()).device)
                total.add(mean_loss(ensemble, batch, self.autocast), batch.n_targets)
            found.append(total)
        return self._in_unit(found)

    def _in_unit(self, totals: Sequence[LossSum]) -> tuple[float, ...]:
        if self.model.objective != "causal":
            return tuple(total.mean() for total in totals)
        return tuple(
            corpus.nats_per_byte(total.mean()) for corpus, total in zip(self.corpora, totals, strict=True)
        )  # fmt: skip


def mean_row(name: str, rows: Sequence[Row], note: str = "") -> Row:
    """The mean of the losses in `rows`, which is the loss of no model."""
    return Row(name, tuple(sum(column) / len(rows) for column in zip(*(row.losses for row in rows), strict=True)), note)


def table(domains: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Lines for a person: a column per domain, the mean, and the note."""
    width = max(len(row.name) for row in rows)
    widths = [max(6, len(name)) for name in (*domains, "mean")]
    head = "  ".join(f"{name:>{place}}" for name, place in zip((*domains, "mean"), widths, strict=True))
    lines = [f"{'':<{width}}  {head}"]
    for row in rows:
        losses = zip((*row.losses, row.mean), widths, strict=True)
        numbers = "  ".join(f"{loss:>{place}.4f}" for loss, place in losses)
        lines.append(f"{row.name:<{width}}  {numbers}  {row.note}".rstrip())
    return lines
