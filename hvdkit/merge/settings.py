"""What can be set for the merge of a tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hvdkit.merge.rules import Rule


@dataclass(frozen=True)
class Settings:
    """How the tensors of M submodels become one: the rule and its numbers. Raises ValueError if they cannot be."""

    rule: Rule
    weights: tuple[float, ...]
    """(M,), one per submodel."""
    densities: tuple[float, ...]
    """(M,) in (0, 1]: the share of each task vector that is kept, by rules that leave anything out."""
    scale: float = 1.0
    """Of the merged task vector (lambda in the papers)."""
    gamma: float = 0.01
    """Breadcrumbs: the share of largest elements left out."""
    epsilon: float = 0.1
    """DELLA: how far the probability to keep an element varies with its magnitude."""
    seed: int = 0

    def __post_init__(self) -> None:
        found = faults(self)
        if found:
            raise ValueError("; ".join(found))


def faults(settings: Settings) -> list[str]:
    """All that is wrong with `settings`, in sentences."""
    rule, weights = settings.rule, settings.weights
    found = []
    if not all(map(math.isfinite, (*weights, settings.scale, settings.gamma, settings.epsilon))):
        found.append("weights, scale, gamma and epsilon must be finite numbers")
    divides = rule.is_normalised or rule.combiner == "consensus"
    if divides and abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights), default=0.0):
        found.append(f"the weights {_listed(weights)} add up to 0: {rule.name} divides by their sum")
    if rule.has_positive_weights and min(weights, default=0) < 0:
        found.append(f"the weights {_listed(weights)} must not be negative with {rule.name}")
    if rule.takes_density and not all(0 < density <= 1 for density in settings.densities):
        found.append(f"density {_listed(settings.densities)} must be in (0, 1]: the share that is kept")
    if rule.sparsifier == "breadcrumbs" and max(settings.densities) + settings.gamma > 1:
        found.append(
            f"density {max(settings.densities)} and gamma {settings.gamma} add up to more than 1: gamma is left out at "
            "the top, density kept below it"
        )
    if not 0 <= settings.gamma < 1 or not 0 <= settings.epsilon < 1:
        found.append(f"gamma {settings.gamma} and epsilon {settings.epsilon} must be in [0, 1)")
    if not rule.has_base and settings.scale != 1:
        found.append(f"scale {settings.scale:g} is of task vectors, which {rule.name} does not make")
    if rule.only_models is not None and len(weights) != rule.only_models:
        found.append(f"{rule.name} merges exactly {rule.only_models} submodels, not {len(weights)}")
    if len(weights) < rule.least_models:
        found.append(f"{rule.name} merges {rule.least_models} submodels or more, not {len(weights)}")
    return found


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
