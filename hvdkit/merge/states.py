"""Merges state dicts in memory: the plain form of what `hvdkit.merge` does with files and over ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hvdkit.errors import MergeError
from hvdkit.merge.output import rounded
from hvdkit.merge.rules import rule_named
from hvdkit.merge.settings import Settings
from hvdkit.merge.tensor import Read, TensorMerge, computed_in

State = Mapping[str, torch.Tensor]


def merge_states(
    states: Sequence[State],
    rule: str = "average",
    *,
    base: State | None = None,
    weights: Sequence[float] | None = None,
    density: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    **more: Any,
) -> dict[str, torch.Tensor]:
    """Merge the state dicts of several submodels into a new one. Not collective.

    Args:
        states: of equal names and shapes; floating tensors of any dtype, on the CPU. Others must be equal in all.
        rule: a name of `RULES`.
        base: what the submodels started from, for rules on task vectors.
        weights: one per submodel; default 1 each.
        density: the share of each task vector that is kept, one for all or one per submodel.
        scale: of the merged task vector.
        more: `gamma`, `epsilon` and `seed` of `Settings`.

    Returns tensors in the first state's dtypes, computed in float32 (float64 where one is float64); those that share
    memory in every state do so in the result. Raises MergeError naming submodel and tensor that do not fit,
    ValueError for settings that cannot be.
    """
    densities = [float(density)] * len(states) if isinstance(density, float | int) else [*density]
    given = [1.0] * len(states) if weights is None else [float(weight) for weight in weights]
    if not states or len(given) != len(states) or len(densities) != len(states):
        raise ValueError(
            f"{len(states)} submodels with {len(given)} weights and {len(densities)} densities: one each per submodel"
        )
    settings = Settings(rule_named(rule), tuple(given), tuple(densities), scale, **more)
    if settings.rule.has_base and base is None:
        raise ValueError(f"{rule} merges task vectors: pass base=, what the submodels started from")
    all_states = [*states, base] if settings.rule.has_base and base is not None else [*states]
    _check_alike(all_states)
    done: dict[tuple[Any, ...], torch.Tensor] = {}
    merged = {}
    for name, first in states[0].items():
        # Tied are tensors that share memory in every submodel.
        place = tuple(_place(state[name]) for state in states) if first.numel() else (name,)
        if place not in done:
            done[place] = _merge(name, [state[name] for state in all_states], settings)
        merged[name] = done[place]
    return merged


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _check_alike(states: Sequence[State]) -> None:
    first = states[0]
    for number, state in enumerate(states[1:], 1):
        for name in [*first, *state]:
            if (name in first) != (name in state):
                lacking = 0 if name in state else number
                raise MergeError(f"submodel {lacking} has no {name}, which another has")
            if first[name].shape != state[name].shape:
                raise MergeError(
                    f"{name} is {tuple(first[name].shape)} in submodel 0 and {tuple(state[name].shape)} in {number}"
                )


def _merge(name: str, tensors: Sequence[torch.Tensor], settings: Settings) -> torch.Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        if not all(torch.equal(first, other) for other in tensors[1:]):
            raise MergeError(f"{name} is {first.dtype} and not the same in all submodels: it cannot be merged")
        return first.clone()
    reads = [_reader(tensor) for tensor in tensors]
    base = reads.pop() if settings.rule.has_base else None
    work = TensorMerge(
        name, tuple(first.shape), computed_in([tensor.dtype for tensor in tensors]), settings, reads, base
    )
    result = torch.empty(first.shape, dtype=first.dtype)
    flat = result.view(-1)
    for block, values in work.merged():
        flat[block.start : block.stop] = rounded(name, values, first.dtype)
    return result


def _reader(tensor: torch.Tensor) -> Read:
    flat = tensor.detach().cpu().reshape(-1)
    return lambda start, stop: flat[start:stop]
