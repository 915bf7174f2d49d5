"""The oracle: all workers of a run simulated in one process, by the papers' rules, with plain loops."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hvdkit.runtime import World
from tests.sharding.problems import Model, loss_of

STEPS = 14
Data = Callable[[int, int], torch.Tensor]


def make_model(layers: int = 3, dtype: torch.dtype = torch.float64) -> Model:
    """Embedding tied to the head, layers, a frozen matrix, a buffer; the same on every rank."""
    return Model(layers=layers, width=8).to(dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained(model), lr=0.01, weight_decay=0.1)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained(model), lr=0.1)


def tokens_of(rank: int, step: int) -> torch.Tensor:
    """(3, 5) tokens of a rank's inner step, different for each."""
    return torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(100 * step + rank))


def train(
    model: nn.Module, inner: torch.optim.Optimizer, rank: int, steps: Sequence[int], before: Any = lambda step: None
) -> None:
    """A user's loop, over the steps of these numbers."""
    for step in steps:
        inner.zero_grad()
        loss_of(model, tokens_of(rank, step)).backward()
        before(step)
        inner.step()


def assert_equal(model: nn.Module, wanted: nn.Module, tolerance: float = 1e-12) -> None:
    pairs = zip(model.state_dict().items(), wanted.state_dict().values(), strict=True)
    for (name, mine), theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=lambda t, n=name: f"{n}: {t}")


def worker_of(world: World) -> int:
    return world.rank


class Simulation:
    """`size` workers, their fragments' parameters by name, and outer SGD written out."""

    def __init__(
        self, size: int, fragments: Sequence[Sequence[str]], *, lr: float = 0.7, momentum: float = 0.9,
        inner: Callable[[nn.Module], torch.optim.Optimizer] = adamw, overlap: int = 0, mixing: float = 0.5,
    ) -> None:  # fmt: skip
        self.models = [make_model() for _ in range(size)]
        self.inners = [inner(model) for model in self.models]
        self.fragments, self.lr, self.momentum = fragments, lr, momentum
        self.overlap, self.mixing = overlap, mixing
        self.outer = copy.deepcopy(dict(self.models[0].named_parameters()))
        self.momenta: dict[str, torch.Tensor] = {}
        self.weights = [[0.0] * size for _ in fragments]

    def step(self, worker: int, number: int, weight: float = 1.0) -> None:
        """One inner step of one worker."""
        train(self.models[worker], self.inners[worker], worker, [number])
        for weights in self.weights:
            weights[worker] += weight

    def mean(self, fragment: int) -> dict[str, torch.Tensor] | None:
        """The weighted mean pseudo-gradient of a fragment."""
        weights, self.weights[fragment] = self.weights[fragment], [0.0] * len(self.models)
        if not sum(weights):
            return None
        own = [dict(model.named_parameters()) for model in self.models]
        return {
            name: sum(w * (self.outer[name] - mine[name]) for w, mine in zip(weights, own, strict=True)).detach()
            / sum(weights)
            for name in self.fragments[fragment]
        }  # fmt: skip

    @torch.no_grad()
    def apply(self, fragment: int, mean: dict[str, torch.Tensor] | None, keep: float = 0.0) -> None:
        """The outer step: v <- m v + g, theta <- theta - lr (g + m v); then the workers mix it in."""
        for name in self.fragments[fragment]:
            if mean is not None:
                velocity = self.momenta.get(name)
                velocity = mean[name] if velocity is None else self.momentum * velocity + mean[name]
                self.momenta[name] = velocity
                change = mean[name] + self.momentum * velocity if self.momentum else mean[name]
                self.outer[name].sub_(self.lr * change)
            for model in self.models:
                own = dict(model.named_parameters())[name]
                own.copy_(keep * own + (1 - keep) * self.outer[name])

    def run(self, steps: int, sync_every: int) -> nn.Module:
        """`steps` steps of all workers, and the last synchronisation; returns the model that all hold then."""
        count, next_one, begun = len(self.fragments), 0, None
        for number in range(1, steps + 1):
            for worker in range(len(self.models)):
                self.step(worker, number)
            in_round = (number - 1) % sync_every + 1
            if begun is not None and (number == begun[2] or in_round * count >= (next_one + 1) * sync_every):
                self.apply(begun[0], begun[1], self.mixing)
                begun = None
            while in_round * count >= (next_one + 1) * sync_every:
                mean = self.mean(next_one)
                if self.overlap:
                    begun = next_one, mean, number + self.overlap
                else:
                    self.apply(next_one, mean)
                next_one = (next_one + 1) % count
                if next_one == 0:
                    break
        if begun is not None:
            self.apply(begun[0], begun[1])
        for _ in range(count):
            self.apply(next_one, self.mean(next_one))
            next_one = (next_one + 1) % count
        return self.models[0]
