"""The outer optimizer: it steps the outer values with the mean pseudo-gradient as their gradient.

Source: A. Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv:2311.08105:
SGD with Nesterov momentum 0.9 and learning rate 0.7. With SGD, learning rate 1 and no momentum the outer step is the
mean of the workers' weights (Local SGD), which is then taken as it is: theta - (theta - mean) would round.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hvdkit.errors import ConfigError
from hvdkit.local.fragments import Fragment


def diloco_optimizer(parameters: Sequence[torch.Tensor], lr: float = 0.7, momentum: float = 0.9) -> torch.optim.SGD:
    """The paper's outer optimizer."""
    return torch.optim.SGD(list(parameters), lr=lr, momentum=momentum, nesterov=momentum > 0)


class Outer:
    """`optimizer`, which was made for the model's parameters, made to step the outer values of `fragments`.

    Groups and their options stay, and so do schedulers of it. Raises ConfigError if it was made for other parameters,
    or has stepped before.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, fragments: Sequence[Fragment]) -> None:
        self.optimizer = optimizer
        self._of: dict[int, torch.nn.Parameter] = {}
        for fragment in fragments:
            for parameter, view in zip(fragment.parameters, fragment.views, strict=True):
                self._of[id(parameter)] = torch.nn.Parameter(view)
        given = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if sorted(given) != sorted(self._of) or optimizer.state:
            raise ConfigError(
                "the outer optimizer must be new, and made for the parameters that the inner one trains: "
                "torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True), say"
            )
        for group in optimizer.param_groups:
            group["params"] = [self._of[id(parameter)] for parameter in group["params"]]

    @property
    def is_mean(self) -> bool:
        """Whether a step makes the outer values the mean of the workers' weights."""
        options: dict[str, Any] = {"lr": 1, "momentum": 0, "dampening": 0, "weight_decay": 0, "maximize": False}
        groups = self.optimizer.param_groups
        return type(self.optimizer) is torch.optim.SGD and all(
            group[name] == value for group in groups for name, value in options.items()
        )

    def step(self, fragment: Fragment, mean: torch.Tensor) -> None:
        """Step the outer values of `fragment` with the mean pseudo-gradient `mean`, (n,)."""
        for parameter, gradient in zip(fragment.parameters, fragment.in_shapes(mean), strict=True):
            self._of[id(parameter)].grad = gradient
        self.optimizer.step()  # which leaves parameters without a gradient alone
        self.optimizer.zero_grad(set_to_none=True)
