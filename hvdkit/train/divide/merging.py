"""The submodels merged by a rule, with what the rule leaves open chosen on text that nothing was trained on."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hvdkit.errors import ConfigError
from hvdkit.merge import RULES, Settings, greedy_soup, merge_states
from hvdkit.merge.soup import Metric
from hvdkit.merge.states import State

GREEDY_SOUP = "greedy_soup"
DENSITIES = (0.5, 0.9)
"""The shares that rules which leave out elements may keep. A short training with AdamW changes all elements about
equally, and then little can be left out."""
SCALES = (0.5, 1.0, 1.5)
"""Of the merged task vector; weights are 1/M, so that 1 is the mean's."""


@dataclass(frozen=True)
class Merge:
    """A merged model's tensors, and how it was made."""

    state: dict[str, torch.Tensor]
    note: str = ""


def read_rules(text: str, submodels: int) -> list[str]:
    """The names in `text`, which commas divide. Raises ConfigError for one that is not there, or not for so many."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name == GREEDY_SOUP:
            continue
        if name not in RULES:
            raise ConfigError(f"--merge-rules {name}: use some of {', '.join((*RULES, GREEDY_SOUP))}")
        try:
            Settings(RULES[name], (1 / submodels,) * submodels, (max(DENSITIES),) * submodels)
        except ValueError as error:
            raise ConfigError(f"--merge-rules {name}: {error}") from None
    if not names or len({*names}) < len(names):
        raise ConfigError(f"--merge-rules {text!r}: name one rule or more, each once")
    return names


def merge_by(rule: str, base: State, states: Sequence[State], names: Sequence[str], metric: Metric, seed: int) -> Merge:
    """Merge `states`, called `names` and all made from `base`. `metric` (lower is better) chooses density and scale, or
    the members of a soup; collective if it is."""
    if rule == GREEDY_SOUP:
        soup = greedy_soup(states, metric)
        return Merge(soup.state, f"of {', '.join(names[member] for member in soup.kept)}")
    kind = RULES[rule]
    weights = [1 / len(states)] * len(states)

    def merged(density: float, scale: float) -> dict[str, torch.Tensor]:
        return merge_states(states, rule, base=base, weights=weights, density=density, scale=scale, seed=seed)

    if not kind.has_base or kind.is_normalised:  # nothing to scale, or done by the rule
        return Merge(merged(1.0, 1.0))
    choices = itertools.product(DENSITIES if kind.takes_density else (1.0,), SCALES)
    density, scale = min(choices, key=lambda choice: metric(merged(*choice)))
    return Merge(merged(density, scale), (f"density {density}, " if kind.takes_density else "") + f"scale {scale}")
