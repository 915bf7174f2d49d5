"""Saving and loading the whole state of a sharded model and optimizer, as one process would.

It is `{"model": ..., "optimizer": ...}` with the two state dicts that the same model and optimizer have without
sharding, and can be loaded by those; it is put together one flat at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvdkit.errors import HvdkitError
from hvdkit.runtime.dropin import operations
from hvdkit.runtime.dropin.functions import broadcast_object
from hvdkit.sharding.optimizer import Sharded, cut, is_cut
from hvdkit.sharding.shards import Shard, Shards
from hvdkit.sharding.state import (
    State,
    aliases_of,
    buffers_of,
    entries_of,
    forget_state,
    named_groups,
    named_tensors,
    numbered,
    options_of,
    put_entry,
    sharded_of,
)


@torch.no_grad()
def full_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, on_rank: int | None = 0, only: str | None = None
) -> State:
    """The whole state, as the unsharded model's and optimizer's `state_dict()`, on the CPU. Collective.

    `{"model": ..., "optimizer": ...}` on rank `on_rank`, or on all where that is None; {} elsewhere. 16-bit parameters
    come rounded, their float32 master weights as "master" in the optimizer's state. `only="optimizer"` leaves the model
    out.
    """
    sharded = sharded_of(optimizer)
    shards = sharded.shards
    keeps = on_rank is None or shards.collectives.index == on_rank
    values: dict[str, torch.Tensor] = {}
    state: dict[str, dict[str, Any]] = {}
    for number, shard in enumerate(shards.shards):
        for index, value in () if only else _whole_parameters(shards, shard, number):
            if keeps:
                values[shards.names[index]] = value.to("cpu", copy=True)
        for index, key, value in _whole_entries(sharded, shard, number):
            if keeps:
                entries = state.setdefault(shards.names[index], {})
                entries[key] = value.to("cpu", copy=True) if torch.is_tensor(value) else value
    if not keeps:
        return {}
    whole_optimizer = numbered(state, named_groups(sharded))
    if only:
        return {"optimizer": whole_optimizer}
    return {"model": _model_state(model, shards, values), "optimizer": whole_optimizer}


@torch.no_grad()
def load_full_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: State | None, *, from_rank: int = 0,
    only: str | None = None,
) -> None:  # fmt: skip
    """Load a whole state, which only rank `from_rank` needs to have (others may pass None). Collective.

    It may come from an unsharded model, or from `full_state_dict` of any number of ranks and stage. With
    `only="optimizer"` the parameters stay as they are. Raises HvdkitError on all ranks, before anything is changed, if
    it does not fit.
    """
    sharded = sharded_of(optimizer)
    shards = sharded.shards
    outline = _agreed_outline(model, sharded, state, from_rank, is_optimizer_alone=only is not None)
    is_source = shards.collectives.index == from_rank
    tensors: Mapping[str, torch.Tensor] = {}
    entries: Mapping[str, dict[str, Any]] = {}
    if is_source:
        assert state is not None
        tensors, entries = state.get("model", {}), _by_name(state["optimizer"], sharded)
    device = shards.parameters[0].device

    def sent(value: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype, name: str) -> torch.Tensor:
        ours = torch.empty(shape, dtype=dtype, device=device) if value is None else value.to(device, dtype).contiguous()
        received: torch.Tensor = operations.broadcast(ours, root_rank=from_rank, name=f"hvdkit.sharding.load.{name}")
        return received

    forget_state(sharded)
    held_of = {held.piece.index: held for held in shards.held()}
    for index, (name, parameter) in enumerate(zip(shards.names, shards.parameters, strict=True)):
        if not only:
            shards.put_full(index, sent(tensors.get(name), parameter.shape, parameter.dtype, str(index)))
        for key, value in outline.entries.get(name, {}).items():
            if isinstance(value, _Cut):
                mine = entries[name][key] if is_source else None
                value = sent(mine, parameter.shape, value.dtype, f"{index}.{key}")
            if (held := held_of.get(index)) is not None:
                put_entry(sharded, held, key, cut(key, value, parameter, held))
    for number, (name, buffer) in enumerate([] if only else buffers_of(model)):
        buffer.copy_(sent(tensors.get(name), buffer.shape, buffer.dtype, f"buffer.{number}"))
    for group, saved in zip(sharded.param_groups, outline.groups, strict=True):
        group.update(saved)
    if shards.is_shared_by_node:
        shards.wait_for_all()


def _whole_parameters(shards: Shards, shard: Shard, number: int) -> Iterator[tuple[int, torch.Tensor]]:
    """All parameters of a flat, by index. Collective at stage 3."""
    with shard.whole(shards.collectives, f"{shards.key}.full.{number}"):
        for index in shard.flat.indices:
            yield index, shards.parameters[index].detach()


def _whole_entries(sharded: Sharded, shard: Shard, number: int) -> Iterator[tuple[int, str, Any]]:
    """The state of all parameters of a flat: index, key and value of each entry. Collective."""
    collectives, flat = sharded.shards.collectives, shard.flat
    held_of = {held.piece.index: held for held in shard.held}
    mine = {index: entries_of(sharded, held) for index, held in held_of.items()}
    outlines = {index: _without_tensors(entries, held_of[index].tensor.shape) for index, entries in mine.items()}
    merged: dict[int, dict[str, Any]] = {}
    for others in collectives.gather_objects(outlines, f"{sharded.shards.key}.kinds.{number}"):
        for index, entries in (others or {}).items():
            merged.setdefault(index, {}).update(entries)
    cut_keys = dict.fromkeys((key, value) for entries in merged.values() for key, value in entries.items()
                             if isinstance(value, _Cut))  # fmt: skip
    for key, kind in cut_keys:
        part = torch.zeros(flat.counts[shard.rank], dtype=kind.dtype, device=flat.device)
        for index, held in held_of.items():
            if key in mine[index]:
                held.piece.within(part).copy_(mine[index][key].reshape(-1))
        whole = torch.empty(flat.numel, dtype=kind.dtype, device=flat.device)
        collectives.all_gather_into(part, whole, flat.counts, f"{sharded.shards.key}.state.{number}.{key}")
        for index, value in zip(flat.indices, whole.split(list(flat.lengths)), strict=True):
            if merged.get(index, {}).get(key) == kind:
                yield index, key, value.view(sharded.shards.parameters[index].shape)
    for index, entries in merged.items():
        yield from ((index, key, value) for key, value in entries.items() if not isinstance(value, _Cut))


def _model_state(model: nn.Module, shards: Shards, cut_values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    uncut = {name: parameter.detach().to("cpu", copy=True)
             for index, (name, parameter) in enumerate(zip(shards.names, shards.parameters, strict=True))
             if index not in shards.shard_of}  # fmt: skip
    values = {**cut_values, **uncut, **{name: buffer.to("cpu", copy=True) for name, buffer in buffers_of(model)}}
    values.update({alias: values[name] for alias, name in aliases_of(model, shards).items()})
    return values


@dataclass(frozen=True)
class _Cut:
    """Stands for a tensor with an element for each of a parameter's, which is sent by itself."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Outline:
    """What all ranks must know of a whole state before its tensors are sent."""

    entries: dict[str, dict[str, Any]]
    """The optimizer's, by the parameters' names, with a `_Cut` in place of what is cut."""
    groups: list[dict[str, Any]]
    """Without parameters."""


def _without_tensors(entries: Mapping[str, Any], shape: torch.Size) -> dict[str, Any]:
    """The optimizer's entries of a parameter of `shape`, with a `_Cut` in place of what is cut."""
    return {key: _Cut(value.dtype) if is_cut(key, value, shape) else value for key, value in entries.items()}


def _agreed_outline(
    model: nn.Module, sharded: Sharded, state: State | None, from_rank: int, *, is_optimizer_alone: bool
) -> _Outline:
    """That of the state that rank `from_rank` has. Collective.

    Raises HvdkitError on all ranks if the state does not fit.
    """
    outline: Any = None
    if sharded.shards.collectives.index == from_rank:
        try:
            outline = _outline(model, sharded, state, is_optimizer_alone=is_optimizer_alone)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            outline = f"the state cannot be read: {error!r}"
    outline = broadcast_object(outline, root_rank=from_rank, name="hvdkit.sharding.outline")
    if isinstance(outline, str):
        raise HvdkitError(f"load_full_state_dict: {outline}")
    assert isinstance(outline, _Outline)
    return outline


def _outline(model: nn.Module, sharded: Sharded, state: State | None, *, is_optimizer_alone: bool) -> _Outline | str:
    """A sentence if `state` does not fit."""
    shards = sharded.shards
    parts = {"optimizer"} if is_optimizer_alone else {"model", "optimizer"}
    if not isinstance(state, dict) or not parts <= state.keys():
        return 'the state is not {"model": ..., "optimizer": ...}'
    if not is_optimizer_alone and (problem := _why_no_model(model, shards, state["model"])):
        return problem
    saved = state["optimizer"].get("param_groups", [])
    saved_lengths = [len(group["params"]) for group in saved]
    lengths = [len(indices) for indices in sharded.group_indices]
    if saved_lengths != lengths:
        return f"the saved optimizer has groups of {saved_lengths} parameters, this one of {lengths}"
    shapes = {name: parameter.shape for name, parameter in zip(shards.names, shards.parameters, strict=True)}
    entries_of_name = _by_name(state["optimizer"], sharded)
    entries = {name: _without_tensors(entries, shapes[name]) for name, entries in entries_of_name.items()}
    return _Outline(entries, [options_of(group) for group in saved])


def _by_name(optimizer_state: State, sharded: Sharded) -> dict[str, dict[str, Any]]:
    """The optimizer's entries of each parameter, by its name."""
    names = sharded.shards.names
    found = {}
    for saved, indices in zip(optimizer_state["param_groups"], sharded.group_indices, strict=True):
        for number, index in zip(saved["params"], indices, strict=True):
            found[names[index]] = optimizer_state["state"].get(number, {})
    return found


def _why_no_model(model: nn.Module, shards: Shards, saved: Mapping[str, torch.Tensor]) -> str | None:
    wanted = named_tensors(model, shards)
    for name, target in wanted.items():
        value = saved.get(name)
        if value is None:
            return f"the saved model has no {name}"
        if value.shape != target.shape:
            return f"{name} has shape {tuple(value.shape)} in the saved model and {tuple(target.shape)} in this one"
    unknown = saved.keys() - wanted.keys() - aliases_of(model, shards).keys()
    return f"the saved model has {min(unknown)}, which this one has not" if unknown else None
