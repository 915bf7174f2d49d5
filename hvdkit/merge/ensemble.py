"""Outputs merged instead of weights: an ensemble with its submodels on the ranks, y = sum_i w_i y_i or [y_1 ... y_M].

Sums pass through one all-reduce, so no rank ever holds the outputs of all submodels; only their concatenation, which is
the result then, is gathered. Submodels need not be of one architecture, just of one output. Source: averages of
probabilities, Lakshminarayanan et al. 2017, arXiv 1612.01474; of logits and by vote, Dietterich 2000.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from hvdkit.errors import MergeError
from hvdkit.merge.tensor import computed_in
from hvdkit.runtime import World, gather_objects, together

if TYPE_CHECKING:
    from hvdkit.collectives import Collectives

Combine = Literal["probabilities", "logits", "vote", "concatenate"]


class Ensemble(nn.Module):
    """The submodels of all ranks as one model. Making and calling it are collective.

    Args:
        models: this rank's submodel; or several, or none where there are more ranks than submodels.
        weights: of this rank's submodels, 0 or more, 1 by default; over all ranks they are made to add up to 1.
        combine: what all ranks get of the submodels' outputs y_i, logits (..., c) of floating point:
            "probabilities": log(sum_i w_i softmax(y_i)), whose cross-entropy is the ensemble's; (..., c)
            "logits": sum_i w_i y_i; (..., c)
            "vote": the share of the weights that is for each class, each submodel for its largest logit; (..., c)
            "concatenate": [y_1 ... y_M] along the last dimension, in which they may differ, in the order of the ranks

    Raises ValueError on all ranks for weights that are negative, infinite, all 0, or not one per submodel.
    """

    def __init__(
        self,
        world: World,
        models: nn.Module | Sequence[nn.Module],
        weights: float | Sequence[float] | None = None,
        combine: Combine = "probabilities",
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList([models] if isinstance(models, nn.Module) else models)
        self.combine = combine
        self._world = world
        given = [weights] if isinstance(weights, float | int) else weights
        mine = together(world, lambda: [1.0] * len(self.models) if given is None else [float(one) for one in given])
        is_weighted = weights is not None
        everyone = gather_objects(world, (mine, len(self.models), combine, is_weighted))
        _check(everyone)
        total = math.fsum(weight for row, *_ in everyone for weight in row)
        self.weights = [weight / total for weight in mine]
        self.eval()

    @torch.no_grad()
    def forward(self, *inputs: Any) -> torch.Tensor:
        """The ensemble's output on every rank; all ranks pass the same `inputs`, as the submodels take them.

        In float32, float64 if a submodel's is. Sends 2(p-1)/p of the result's bytes per rank, concatenation those of
        this rank's outputs to each other. Raises MergeError on all ranks where a submodel fails or outputs differ.
        """
        outputs = together(self._world, lambda: [_floating(model(*inputs)) for model in self.models])
        shape, dtype = self._agree(outputs)
        if self.combine == "concatenate":
            widths_first = [output.to(dtype).movedim(-1, 0) for output in outputs]
            mine = torch.cat([*widths_first, torch.empty(0, *shape[:-1], dtype=dtype, device=self._world.device)])
            if self._world.size > 1:
                mine = self._collectives().all_gather(mine.contiguous(), "hvdkit.ensemble")
            return mine.movedim(0, -1)
        total = torch.zeros(shape, dtype=dtype, device=self._world.device)
        for weight, output in zip(self.weights, outputs, strict=True):
            total.add_(self._counted(output.to(dtype)), alpha=weight)
        if self._world.size > 1:
            self._collectives().all_reduce_async_(total, "hvdkit.ensemble").wait()
        # A class that every submodel rules out costs a lot, not infinitely much.
        return total.clamp_min_(torch.finfo(dtype).tiny).log_() if self.combine == "probabilities" else total

    def _counted(self, output: torch.Tensor) -> torch.Tensor:
        if self.combine == "probabilities":
            return output.softmax(-1)
        if self.combine == "vote":
            return F.one_hot(output.argmax(-1), output.shape[-1]).to(output.dtype)
        return output

    def _agree(self, outputs: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape of the submodels' outputs (their last dimension may differ where they are concatenated)."""
        everyone = gather_objects(self._world, [(tuple(output.shape), output.dtype) for output in outputs])
        found = [item for row in everyone for item in row]
        kept = -1 if self.combine == "concatenate" else None
        if len({shape[:kept] for shape, _ in found}) != 1:
            raise MergeError(f"the submodels' outputs differ: {', '.join(str(shape) for shape, _ in found)}")
        return found[0][0], computed_in([dtype for _, dtype in found])

    def _collectives(self) -> "Collectives":
        from hvdkit.collectives import HorovodEngine, direct_collectives, why_no_direct

        if self._world.device.type != "cpu" or why_no_direct(self._world) is not None:
            return HorovodEngine(self._world)
        return direct_collectives(self._world)


def _floating(output: Any) -> torch.Tensor:
    if not isinstance(output, torch.Tensor) or not output.is_floating_point() or not output.dim():
        got = f"{output.dtype}, {output.dim()} dimensions" if isinstance(output, torch.Tensor) else type(output)
        raise MergeError(f"a submodel must return logits, a floating tensor (..., c), not {got}")
    return output


def _check(everyone: Sequence[tuple[list[float], int, str, bool]]) -> None:
    """Raise ValueError, the same on all ranks, for what they gave: weights, submodels, combine, whether weighted."""
    kinds = {kind for _, _, kind, _ in everyone}
    weights = [weight for row, *_ in everyone for weight in row]
    if len(kinds) > 1 or kinds.isdisjoint(get_args(Combine)):
        raise ValueError(f"combine={', '.join(sorted(kinds))}: use one of {', '.join(get_args(Combine))} on all ranks")
    if kinds == {"concatenate"} and any(is_weighted for *_, is_weighted in everyone):
        raise ValueError("a concatenation has no weights: leave them out")
    if not any(count for _, count, *_ in everyone):
        raise ValueError("an ensemble needs a submodel on at least one rank")
    for rank, (row, count, *_) in enumerate(everyone):
        if len(row) != count:
            raise ValueError(f"{len(row)} weights for {count} submodels on rank {rank}: one each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise ValueError(f"weights {weights} must be finite, 0 or more, and not all 0")
