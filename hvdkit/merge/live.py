"""Merges the models that the ranks hold in memory, while they are training: `hvd.merge_`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from hvdkit.errors import DivergenceError, MergeError
from hvdkit.merge.blocks import Block
from hvdkit.merge.exchange import Group, Held, merge_exchanging
from hvdkit.merge.lanes import Bytes, Lanes, lanes_of, typed
from hvdkit.merge.output import rounded
from hvdkit.merge.rules import rule_named
from hvdkit.merge.settings import Settings
from hvdkit.merge.tensor import Read, TensorMerge, computed_in
from hvdkit.models.state import distinct_tensors
from hvdkit.runtime import World, gather_objects, raise_together, require_world, together


@torch.no_grad()
def merge_(
    model: nn.Module,
    rule: str = "average",
    *,
    base: nn.Module | Mapping[str, torch.Tensor] | None = None,
    weights: float | Sequence[float] = 1.0,
    density: float | Sequence[float] = 1.0,
    scale: float = 1.0,
    **more: Any,
) -> None:
    """Replace the model of every rank by the merge of all ranks' models, in place. Collective.

    Args:
        model: this rank's submodel; its floating parameters and buffers are merged, others must be equal on all ranks.
        rule: a name of `RULES`.
        base: what the submodels started from, the same on every rank, for rules on task vectors.
        weights, density: this rank's, or one number per rank.
        scale, more: as in `merge_states`.

    Takes memory for a second copy of the model, and sends about twice the model's bytes per rank, in its own dtypes
    (spherical rules and model_stock three times). Raises on all ranks, and then nothing has changed: ValueError for
    settings that cannot be, DivergenceError for models, bases or settings that differ, MergeError for values that are
    not finite or become too large.
    """
    world = require_world()
    tensors = distinct_tensors(model)
    from_base = distinct_tensors(base) if isinstance(base, nn.Module) else base
    settings = _settings(world, rule, weights, density, {"scale": scale, **more}, from_base is not None)
    if settings.rule.has_base and from_base is None:
        raise ValueError(f"merge_: {rule} merges task vectors: pass base=, what the submodels started from")
    _check_alike(world, tensors, from_base if settings.rule.has_base else None, settings)
    lanes = lanes_of(world)
    merged = [
        (tensor, _merge(world, lanes, name, tensor, from_base, settings))
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    ]
    for tensor, values in merged:  # nothing can go wrong any more
        tensor.copy_(values)


def _settings(
    world: World,
    rule: str,
    weights: float | Sequence[float],
    density: float | Sequence[float],
    more: Any,
    has_base: bool,
) -> Settings:
    """With one weight and density per rank, on all ranks. Collective; raises together."""

    def own(values: float | Sequence[float], what: str) -> float:
        if isinstance(values, int | float):
            return float(values)
        if len(values) != world.size:
            raise ValueError(f"merge_: {len(values)} {what} for {world.size} ranks: give this rank's, or one per rank")
        return float(values[world.rank])

    def check() -> tuple[float, float]:
        rule_named(rule)
        return own(weights, "weights"), own(density, "densities")

    fault: ValueError | None = None
    mine: Any = None
    try:
        mine = check()
    except ValueError as error:
        fault = error
    gathered = gather_objects(world, (mine, None if fault is None else str(fault), (rule, more, has_base)))
    for text in (text for _, text, _ in gathered if text):
        raise ValueError(text)
    if any(other[2] != gathered[0][2] for other in gathered):
        said = "; ".join(
            f"rank {rank}: {asked[0]}, {asked[1]}, {'with' if asked[2] else 'without'} base"
            for rank, (_, _, asked) in enumerate(gathered)
        )
        raise DivergenceError(f"merge_: ranks ask for different merges: {said}")
    pairs = [pair for pair, _, _ in gathered]
    return Settings(rule_named(rule), tuple(weight for weight, _ in pairs), tuple(kept for _, kept in pairs), **more)


def _check_alike(
    world: World, tensors: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor] | None, settings: Settings
) -> None:
    def check() -> list[tuple[Any, ...]]:
        for where, held in (("", tensors), (" of the base", base or {})):
            for name, tensor in held.items():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise MergeError(f"merge_: {name}{where} holds NaN or an infinity; nothing can be merged with it")
        for name, tensor in tensors.items():
            fits = base is None or (name in base and base[name].shape == tensor.shape)
            if tensor.is_floating_point() and not fits:
                raise MergeError(f"merge_: the base has no {name} of shape {tuple(tensor.shape)}")
        # What is not merged, and the base, must be the same.
        fixed = [(name, t, None if t.is_floating_point() else _hash(t)) for name, t in tensors.items()]
        fixed += [(f"{name} of the base", t, _hash(t)) for name, t in (base or {}).items()]
        return [(name, tuple(t.shape), str(t.dtype), digest) for name, t, digest in fixed]

    described = gather_objects(world, together(world, check))
    for rank, other in enumerate(described):
        for one, two in zip(described[0], other, strict=False):
            if one != two:
                raise DivergenceError(f"merge_: {_shown(one)} on rank 0 and {_shown(two)} on rank {rank}")
        if len(other) != len(described[0]):
            raise DivergenceError(f"merge_: {len(described[0])} tensors on rank 0 and {len(other)} on rank {rank}")


def _shown(entry: tuple[Any, ...]) -> str:
    name, shape, dtype, digest = entry
    return f"{name} is {dtype} {shape}" + (f" (hash {digest})" if digest is not None else "")


def _hash(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1)
    found: str = xxhash.xxh3_64_hexdigest(data.view(torch.uint8).numpy().data if data.numel() else b"")
    return found


def _merge(
    world: World, lanes: Lanes, name: str, tensor: torch.Tensor, base: Mapping[str, torch.Tensor] | None,
    settings: Settings,
) -> torch.Tensor:  # fmt: skip
    """All ranks' `tensor` merged, a new tensor on every rank. Collective."""
    flat = tensor.contiguous().view(-1)
    result = torch.empty_like(flat)
    from_base = base[name] if settings.rule.has_base and base is not None else None
    dtypes = [tensor.dtype] if from_base is None else [tensor.dtype, from_base.dtype]
    mine = _reader(flat)
    merge = TensorMerge(
        name, tuple(tensor.shape), computed_in(dtypes), settings, [mine] * world.size,
        None if from_base is None else _reader(from_base.detach().reshape(-1)),
    )  # fmt: skip

    faults: list[Exception] = []

    def put(group: Group, merged: torch.Tensor | None) -> None:
        """Every rank's block of `group` to every rank."""
        lengths = [_n_bytes(group[rank : rank + 1], tensor.dtype) for rank in range(world.size)]
        part: Bytes = np.zeros(lengths[world.rank], dtype=np.uint8)
        if merged is not None:
            try:
                part = _bytes(rounded(name, merged, tensor.dtype))
            except MergeError as error:
                faults.append(error)
        for block, data in zip(group, lanes.all_gather(part, lengths), strict=False):
            result[block.start : block.stop] = typed(data, tensor.dtype).to(flat.device)

    held = Held(range(world.size), [tensor.dtype] * world.size)
    merge_exchanging(world, lanes, merge, held, put)
    raise_together(world, faults[0] if faults else None)
    return result.view(tensor.shape)


def _reader(flat: torch.Tensor) -> Read:
    return lambda start, stop: flat[start:stop].cpu()


def _n_bytes(blocks: Sequence[Block], dtype: torch.dtype) -> int:
    return sum((block.stop - block.start) * dtype.itemsize for block in blocks)


def _bytes(values: torch.Tensor) -> Bytes:
    data: Bytes = values.contiguous().view(torch.uint8).numpy()
    return data
