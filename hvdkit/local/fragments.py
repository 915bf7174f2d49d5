"""Which parameters are synchronised together, and their outer values in one flat tensor.

Layers are dealt out to the fragments in turn ("strided"), so that each holds early and late ones. Source: A. Douillard
et al., "Streaming DiLoCo with overlapping communication", arXiv:2501.18512, section 2.1.
"""

from collections.abc import Sequence

import torch

from hvdkit.errors import ConfigError


def partition(names: Sequence[str], fragments: int) -> list[list[int]]:
    """Indices of the parameters of each fragment. Raises ConfigError for more fragments than layers.

    A layer is what has a number in its name ("blocks.3"), or a module with parameters of its own.
    """
    layers: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        layers.setdefault(_layer_of(name), []).append(index)
    if not 1 <= fragments <= len(layers):
        raise ConfigError(f"fragments={fragments} must be 1 to {len(layers)}, the number of the model's layers")
    return [
        [index for layer in list(layers.values())[first::fragments] for index in layer] for first in range(fragments)
    ]


def _layer_of(name: str) -> str:
    parts = name.split(".")
    numbered = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1] if numbered else parts[:-1])


class Fragment:
    """Some `parameters`, and their outer values one after another: `outer`, (n,) float32, or float64 for float64.

    `views` are the outer values in the parameters' shapes, sharing memory with `outer`.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = list(parameters)
        counts = [parameter.numel() for parameter in self.parameters]
        is_wide = any(parameter.dtype == torch.float64 for parameter in self.parameters)
        dtype = torch.float64 if is_wide else torch.float32
        self.outer = torch.empty(sum(counts), dtype=dtype, device=self.parameters[0].device)
        self._counts = counts
        self.views = self.in_shapes(self.outer)

    def in_shapes(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of `flat`, (n,), in the shapes of the parameters."""
        return [part.view(p.shape) for part, p in zip(flat.split(self._counts), self.parameters, strict=True)]

    @torch.no_grad()
    def own(self) -> torch.Tensor:
        """This rank's values: (n,) of the outer dtype, newly made."""
        flat = torch.empty_like(self.outer)
        for view, parameter in zip(self.in_shapes(flat), self.parameters, strict=True):
            view.copy_(parameter)
        return flat

    @torch.no_grad()
    def pseudo_gradient(self) -> torch.Tensor:
        """The outer values minus this rank's: (n,) of the outer dtype.

        Against what the parameters could hold of the outer values: a 16-bit parameter's rounding is no step.
        """
        flat = torch.empty_like(self.outer)
        for view, outer, parameter in zip(self.in_shapes(flat), self.views, self.parameters, strict=True):
            torch.sub(outer.to(parameter.dtype).to(flat.dtype), parameter.to(flat.dtype), out=view)
        return flat

    @torch.no_grad()
    def take(self, flat: torch.Tensor, keep: float = 0.0) -> None:
        """Make the parameters `keep` times their values plus 1 - `keep` times those in `flat`, (n,)."""
        for parameter, view in zip(self.parameters, self.in_shapes(flat), strict=True):
            if keep:
                parameter.lerp_(view.to(parameter.dtype), 1 - keep)
            else:
                parameter.copy_(view)
