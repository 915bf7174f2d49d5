"""Greedy soup: the submodels, best first, each kept if the average does not get worse with it.

Wortsman et al. 2022, "Model soups", arXiv 2203.05482, recipe 1. Unlike the average of all, it is never worse than the
best submodel under the metric that it is made by.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from hvdkit.errors import MergeError
from hvdkit.merge.states import State, merge_states

Metric = Callable[[State], float]
"""Lower is better; NaN is worse than anything. Over ranks it must give the same on all."""

S = TypeVar("S")


@dataclass(frozen=True)
class Soup(Generic[S]):
    """What was kept, in the order in which it was tried, and its average."""

    state: S
    kept: tuple[int, ...]
    metric: float


def greedy_soup(states: Sequence[State], metric: Metric) -> Soup[dict[str, torch.Tensor]]:
    """The greedy soup of `states`. 2M - 1 calls of `metric`, collective if `metric` is. Raises as `cook`."""
    return cook([dict(state) for state in states], metric, merge_states)


def cook(states: Sequence[S], metric: Callable[[S], float], merge: Callable[[Sequence[S]], S]) -> Soup[S]:
    """The greedy soup of submodels in whatever form: `merge` makes the average of some of them.

    Of submodels equally good the first is tried first; one that leaves the
    metric as it was is kept. Raises MergeError if the metric of no submodel is a number.
    """
    alone = [_number(metric(state)) for state in states]
    order = sorted(range(len(states)), key=alone.__getitem__)
    if not states or alone[order[0]] == math.inf:
        raise MergeError(f"greedy soup: none of {len(states)} submodels has a finite metric")
    kept = order[:1]
    best, soup = alone[order[0]], merge([states[order[0]]])
    for number in order[1:]:
        tried = merge([states[member] for member in (*kept, number)])
        found = _number(metric(tried))
        if found <= best and found < math.inf:
            best, soup = found, tried
            kept.append(number)
    return Soup(soup, tuple(kept), best)


def _number(metric: float) -> float:
    return math.inf if math.isnan(metric) else metric
