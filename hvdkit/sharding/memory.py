"""Bytes that a rank holds for a model's state: by the formulas of the ZeRO paper, and as measured.

With n parameters of b bytes, an optimizer that keeps k float32 numbers for each, and N ranks:

| stage | parameters | gradients | optimizer |
|---|---|---|---|
| 0 | b n | b n | 4k n |
| 1 | b n | b n | 4k n / N |
| 2 | b n | b n / N | 4k n / N |
| 3 | b n / N | the same | 4k n / N |

16-bit parameters have float32 master weights besides, 4n / N, which count as the optimizer's, and their gradients are
held in float32 at stages 2 and 3. One copy of the weights for the ranks of a node (`shared_weights`) counts b n / N for
each of them.
At stage 1 gradients are whole until the backward pass ends. Frozen parameters have neither gradients nor state.

Source: S. Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
arXiv:1910.02054, section 5.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one rank."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All together."""
        return self.parameters + self.gradients + self.optimizer


def state_bytes(
    stage: int,
    parameters: int,
    ranks: int,
    *,
    itemsize: int = 4,
    frozen: int = 0,
    state_per_parameter: float = 2,
    shared_weights: bool = False,
) -> StateBytes:
    """The formula for `parameters` (of which `frozen` are not trained), each of `itemsize` bytes, over `ranks`."""
    share = 1 / ranks
    trained = parameters - frozen
    masters = 4 if itemsize == 2 and stage else 0
    gradient_bytes = 4 if masters and stage > 1 else itemsize
    weights = parameters * itemsize * (share if stage == 3 else 1)
    if shared_weights:
        weights = (trained * share + frozen) * itemsize
    return StateBytes(
        parameters=weights,
        gradients=trained * gradient_bytes * (share if stage > 1 else 1),
        optimizer=trained * (4 * state_per_parameter + masters) * (share if stage else 1),
    )
