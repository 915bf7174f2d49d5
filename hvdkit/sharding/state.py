"""Saving and loading what a sharded model and optimizer hold: whole, as one process would, or each rank its part.

The whole state is `{"model": ..., "optimizer": ...}` with the two state dicts that the same model and optimizer have
without sharding, and can be loaded by those; it is put together one flat at a time. A part holds this rank's pieces
by the parameters' names, with where each begins and ends; `join_parts` makes the whole state of all ranks' parts in any
one process, for another number of ranks or another stage.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hvdkit.errors import HvdkitError
from hvdkit.runtime.dropin import operations
from hvdkit.runtime.dropin.functions import broadcast_object
from hvdkit.sharding.optimizer import Sharded, cut, is_cut
from hvdkit.sharding.shards import HeldPiece, Shard, Shards
from hvdkit.sharding.storage import PartStorage

_FORMAT = 1

State = dict[str, Any]


@torch.no_grad()
def full_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, on_rank: int | None = 0, only: str | None = None
) -> State:
    """The whole state, as the unsharded model's and optimizer's `state_dict()`, on the CPU. Collective.

    `{"model": ..., "optimizer": ...}` on rank `on_rank`, or on all where that is None; {} elsewhere. 16-bit parameters
    come rounded, their float32 master weights as "master" in the optimizer's state. `only="optimizer"` leaves the model
    out.
    """
    shards = _of(optimizer).shards
    keeps = on_rank is None or shards.collectives.index == on_rank
    values: dict[int, torch.Tensor] = {}
    state: dict[int, dict[str, Any]] = {}
    for number, shard in enumerate(shards.shards):
        for index, value in () if only else _whole_parameters(shards, shard, number):
            if keeps:
                values[index] = value.to("cpu", copy=True)
        for index, key, value in _whole_state(_of(optimizer), shard, number):
            if keeps:
                state.setdefault(index, {})[key] = value.to("cpu", copy=True) if torch.is_tensor(value) else value
    if not keeps:
        return {}
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [shards.names[i] for i in indices]}
        for group, indices in zip(optimizer.param_groups, _of(optimizer).group_indices, strict=True)
    ]
    numbered = _numbered({shards.names[index]: entries for index, entries in state.items()}, groups)
    if only:
        return {"optimizer": numbered}
    whole = {shards.names[index]: value for index, value in values.items()}
    return {"model": _model_state(model, shards, whole), "optimizer": numbered}


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
    sharded = _of(optimizer)
    shards = sharded.shards
    is_source = shards.collectives.index == from_rank
    tensors: Mapping[str, torch.Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    outline: Any = None
    if is_source:
        try:
            outline = _outline(model, sharded, state, is_optimizer_alone=only is not None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            outline = f"the state cannot be read: {error!r}"
        if isinstance(outline, dict):
            assert state is not None
            tensors, entries = state.get("model", {}), _by_name(state["optimizer"], sharded)
    outline = broadcast_object(outline, root_rank=from_rank, name="hvdkit.sharding.outline")
    if isinstance(outline, str):
        raise HvdkitError(f"load_full_state_dict: {outline}")
    device = shards.parameters[0].device

    def sent(value: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype, name: str) -> torch.Tensor:
        ours = torch.empty(shape, dtype=dtype, device=device) if value is None else value.to(device, dtype).contiguous()
        received: torch.Tensor = operations.broadcast(ours, root_rank=from_rank, name=name)
        return received

    sharded._reducer.restart()
    if sharded.layers is not None:
        sharded.layers.release_all()
    held_of = {held.piece.index: held for held in shards.held()}
    sharded.state.clear()
    for index, (name, parameter) in enumerate(zip(shards.names, shards.parameters, strict=True)):
        if not only:
            value = sent(tensors.get(name), parameter.shape, parameter.dtype, f"hvdkit.sharding.load.{index}")
            shards.put_full(index, value)
        held = held_of.get(index)
        for key, kind in outline["state"].get(name, {}).items():
            if isinstance(kind, tuple):
                whole = sent(entries[name][key] if is_source else None, parameter.shape, kind[0],
                             f"hvdkit.sharding.load.{index}.{key}")  # fmt: skip
                kind = None if held is None else cut(key, whole, parameter, held)
            if held is None:
                continue
            if key != "master":
                sharded.state[held.tensor][key] = kind.clone() if torch.is_tensor(kind) else kind
            elif held.target is not None:
                held.tensor.copy_(kind)
    for number, (name, buffer) in enumerate([] if only else _buffers(model)):
        buffer.copy_(sent(tensors.get(name), buffer.shape, buffer.dtype, f"hvdkit.sharding.load.buffer.{number}"))
    for group, saved in zip(sharded.param_groups, outline["groups"], strict=True):
        group.update(saved)
    if shards.is_shared_by_node:
        shards.wait_for_all()


@torch.no_grad()
def sharded_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """This rank's part: its pieces, their state, and what is not cut. Not collective; tensors share memory.

    For `load_sharded_state_dict` on as many ranks, and `join_parts`.
    """
    sharded = _of(optimizer)
    shards = sharded.shards
    pieces = {}
    for shard in shards.shards:
        for piece in shard.flat.pieces(shard.rank):
            held = next((item for item in shard.held if item.piece == piece), None)
            length = piece.end - piece.begin
            parameter = shards.parameters[piece.index]
            pieces[shards.names[piece.index]] = {
                "begin": piece.begin,
                "end": piece.end,
                "shape": tuple(parameter.shape),
                "value": shard.storage.part[piece.offset : piece.offset + length],
                "state": _entries(sharded, held) if held is not None else {},
            }
    uncut = {name for index, name in enumerate(shards.names)
             if index not in shards.shard_of or not shards.parameters[index].numel()}  # fmt: skip
    kept = {name: value for name, value in _own_state(model).items() if name in uncut}
    kept.update(_buffers(model))
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [shards.names[i] for i in indices]}
        for group, indices in zip(sharded.param_groups, sharded.group_indices, strict=True)
    ]
    return {"format": _FORMAT, "rank": shards.collectives.index, "size": shards.collectives.size, "pieces": pieces,
            "kept": kept, "groups": groups, "aliases": _aliases(model, shards)}  # fmt: skip


@torch.no_grad()
def load_sharded_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, part: State) -> None:
    """Load this rank's part, from `sharded_state_dict` of as many ranks, cut in the same way. Collective.

    Raises HvdkitError on all ranks, before anything is changed, if a part does not fit on any.
    """
    sharded = _of(optimizer)
    shards = sharded.shards
    problem = _why_no_part(shards, part)
    problems = shards.collectives.gather_objects([problem], "hvdkit.sharding.load_part")
    for rank, found in enumerate(problems):
        if found is not None and found[0]:
            raise HvdkitError(f"load_sharded_state_dict: on rank {rank} {found[0]}")
    sharded._reducer.restart()
    if sharded.layers is not None:
        sharded.layers.release_all()
    sharded.state.clear()
    for shard in shards.shards:
        for piece in shard.flat.pieces(shard.rank):
            saved = part["pieces"][shards.names[piece.index]]
            length = piece.end - piece.begin
            shard.storage.part[piece.offset : piece.offset + length].copy_(saved["value"])
        shard.read_masters()
        for held in shard.held:
            for key, value in part["pieces"][shards.names[held.piece.index]]["state"].items():
                if key == "master" and held.target is not None:
                    held.tensor.copy_(value)
                elif key != "master":
                    sharded.state[held.tensor][key] = value.clone() if torch.is_tensor(value) else value
    targets = {**dict(zip(shards.names, shards.parameters, strict=True)), **dict(_buffers(model))}
    for name, value in part["kept"].items():
        targets[name].detach().copy_(value)
    for group, saved in zip(sharded.param_groups, part["groups"], strict=True):
        group.update({k: v for k, v in saved.items() if k != "params"})
    for number, shard in enumerate(shards.shards):
        if not isinstance(shard.storage, PartStorage):
            shard.storage.spread(shards.collectives, f"hvdkit.sharding.load_part.{number}")
    if shards.is_shared_by_node:
        shards.wait_for_all()


def join_parts(parts: Sequence[State]) -> State:
    """The whole state, as `full_state_dict` gives it, of the parts of all ranks, in any order. Needs no other ranks.

    Raises HvdkitError if parts are missing or do not belong together.
    """
    by_rank = {part.get("rank"): part for part in parts}
    size = parts[0].get("size", 0) if parts else 0
    if sorted(by_rank, key=str) != sorted(range(size), key=str) or any(part.get("size") != size for part in parts):
        raise HvdkitError(
            f"join_parts: {len(parts)} parts, of ranks {sorted(by_rank, key=str)}, are not those of all {size} ranks "
            "of one job"
        )
    first = by_rank[0]
    model = {name: value.clone() for name, value in first["kept"].items()}
    state: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for rank in range(size) for name in by_rank[rank]["pieces"]):
        pieces = [by_rank[rank]["pieces"][name] for rank in range(size) if name in by_rank[rank]["pieces"]]
        pieces.sort(key=lambda piece: piece["begin"])
        shape = pieces[0]["shape"]
        if [piece["end"] for piece in pieces[:-1]] != [piece["begin"] for piece in pieces[1:]] or (
            pieces[0]["begin"] != 0 or pieces[-1]["end"] != torch.Size(shape).numel()
        ):
            raise HvdkitError(f"join_parts: the pieces of {name} leave a gap or overlap")
        model[name] = torch.cat([piece["value"].reshape(-1) for piece in pieces]).view(shape)
        for key, value in pieces[0]["state"].items():
            cut_too = torch.is_tensor(value) and value.numel() == pieces[0]["end"] - pieces[0]["begin"] and value.dim()
            state.setdefault(name, {})[key] = (
                torch.cat([piece["state"][key].reshape(-1) for piece in pieces]).view(shape) if cut_too else value
            )
    for alias, name in first["aliases"].items():
        model[alias] = model[name]
    return {"model": model, "optimizer": _numbered(state, first["groups"])}


def _of(optimizer: torch.optim.Optimizer) -> Sharded:
    if not isinstance(optimizer, Sharded):
        raise HvdkitError(f"this {type(optimizer).__name__} is not sharded: hvd.shard(model, optimizer) makes it so")
    return optimizer


def _whole_parameters(shards: Shards, shard: Shard, number: int) -> Iterator[tuple[int, torch.Tensor]]:
    storage = shard.storage
    was_whole = True
    if isinstance(storage, PartStorage):
        was_whole = storage.is_whole
        storage.gather(shards.collectives, f"{shards.key}.full.{number}")
    for index in shard.flat.indices:
        yield index, shards.parameters[index].detach()
    if not was_whole:
        assert isinstance(storage, PartStorage)
        storage.release()


def _whole_state(sharded: Sharded, shard: Shard, number: int) -> Iterator[tuple[int, str, Any]]:
    """The state of all parameters of a flat. Collective."""
    collectives, flat = sharded.shards.collectives, shard.flat
    mine = {held.piece.index: _entries(sharded, held) for held in shard.held}
    held_of = {held.piece.index: held for held in shard.held}
    kinds = {
        index: {
            key: (value.dtype,) if is_cut(key, value, held_of[index].tensor.shape) else value
            for key, value in entries.items()
        }
        for index, entries in mine.items()
    }
    everyones = collectives.gather_objects(kinds, f"{sharded.shards.key}.kinds.{number}")
    merged: dict[int, dict[str, Any]] = {}
    for other in everyones:
        for index, entries in (other or {}).items():
            merged.setdefault(index, {}).update(entries)
    keys = dict.fromkeys((key, kind) for entries in merged.values() for key, kind in entries.items()
                         if isinstance(kind, tuple))  # fmt: skip
    for key, (dtype,) in keys:
        part = torch.zeros(flat.counts[shard.rank], dtype=dtype, device=flat.device)
        for index, held in held_of.items():
            if key in mine[index]:
                piece = held.piece
                part[piece.offset : piece.offset + piece.end - piece.begin].copy_(mine[index][key].reshape(-1))
        whole = torch.empty(flat.numel, dtype=dtype, device=flat.device)
        collectives.all_gather_into(part, whole, flat.counts, f"{sharded.shards.key}.state.{number}.{key}")
        for index, value in zip(flat.indices, whole.split(list(flat.lengths)), strict=True):
            if merged.get(index, {}).get(key) == (dtype,):
                yield index, key, value.view(sharded.shards.parameters[index].shape)
    for index, entries in merged.items():
        yield from ((index, key, kind) for key, kind in entries.items() if not isinstance(kind, tuple))


def _entries(sharded: Sharded, held: HeldPiece) -> dict[str, Any]:
    entries = dict(sharded.state.get(held.tensor, {}))
    if held.target is not None:
        entries["master"] = held.tensor.detach()
    return entries


def _numbered(state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> State:
    """By numbers instead of names, as torch's optimizers have it."""
    number_of: dict[str, int] = {}
    numbered = []
    for group in groups:
        for name in group["params"]:
            number_of.setdefault(name, len(number_of))
        numbered.append({**group, "params": [number_of[name] for name in group["params"]]})
    return {"state": {number_of[name]: entries for name, entries in state.items()}, "param_groups": numbered}


def _by_name(optimizer_state: State, sharded: Sharded) -> dict[str, dict[str, Any]]:
    names = sharded.shards.names
    found = {}
    for saved, indices in zip(optimizer_state["param_groups"], sharded.group_indices, strict=True):
        for number, index in zip(saved["params"], indices, strict=True):
            found[names[index]] = optimizer_state["state"].get(number, {})
    return found


def _outline(model: nn.Module, sharded: Sharded, state: State | None, *, is_optimizer_alone: bool) -> State | str:
    """What the other ranks must know of `state` before its tensors are sent; a sentence if it does not fit."""
    shards = sharded.shards
    parts = {"optimizer"} if is_optimizer_alone else {"model", "optimizer"}
    if not isinstance(state, dict) or not parts <= state.keys():
        return 'the state is not {"model": ..., "optimizer": ...}'
    if not is_optimizer_alone and (problem := _why_no_model(model, shards, state["model"])):
        return problem
    saved = state["optimizer"].get("param_groups", [])
    lengths = [len(indices) for indices in sharded.group_indices]
    if [len(group["params"]) for group in saved] != lengths:
        return (
            f"the saved optimizer has groups of {[len(group['params']) for group in saved]} parameters, this one of "
            f"{lengths}"
        )
    outline: dict[str, dict[str, Any]] = {}
    shapes = {name: parameter.shape for name, parameter in zip(shards.names, shards.parameters, strict=True)}
    for name, entries in _by_name(state["optimizer"], sharded).items():
        outline[name] = {
            key: (value.dtype,) if is_cut(key, value, shapes[name]) else value for key, value in entries.items()
        }
    return {"state": outline, "groups": [{k: v for k, v in group.items() if k != "params"} for group in saved]}


def _why_no_model(model: nn.Module, shards: Shards, saved: Mapping[str, torch.Tensor]) -> str | None:
    wanted = {**dict(zip(shards.names, shards.parameters, strict=True)), **dict(_buffers(model))}
    for name, target in wanted.items():
        value = saved.get(name)
        if value is None:
            return f"the saved model has no {name}"
        if value.shape != target.shape:
            return f"{name} has shape {tuple(value.shape)} in the saved model and {tuple(target.shape)} in this one"
    unknown = saved.keys() - wanted.keys() - _aliases(model, shards).keys()
    return f"the saved model has {min(unknown)}, which this one has not" if unknown else None


def _why_no_part(shards: Shards, part: Any) -> str | None:
    if not isinstance(part, dict) or part.get("format") != _FORMAT:
        return "what was given is not a part that sharded_state_dict made"
    size, rank = shards.collectives.size, shards.collectives.index
    if (part["size"], part["rank"]) != (size, rank):
        return (
            f"the part is that of rank {part['rank']} of {part['size']}, not of rank {rank} of {size}; make the whole "
            "state of all parts by join_parts() and load that by load_full_state_dict()"
        )
    wanted = {
        shards.names[piece.index]: (piece.begin, piece.end, tuple(shards.parameters[piece.index].shape))
        for shard in shards.shards
        for piece in shard.flat.pieces(shard.rank)
    }
    found = {name: (saved["begin"], saved["end"], tuple(saved["shape"])) for name, saved in part["pieces"].items()}
    if wanted != found:
        name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        return (
            f"{name} is cut in another way (saved {found.get(name)}, here {wanted.get(name)}: begin, end, shape), by "
            "another model or stage; use join_parts() and load_full_state_dict()"
        )
    return None


def _own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def _buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The buffers that a state_dict has, by the names it gives them."""
    found = []
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found.append((f"{prefix}.{name}" if prefix else name, buffer))
    return found


def _aliases(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Further names of tied parameters, and the first name of each."""
    first = {id(parameter): name for name, parameter in zip(shards.names, shards.parameters, strict=True)}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if name != first[id(parameter)]}


def _model_state(model: nn.Module, shards: Shards, whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    uncut = {name: parameter.detach().to("cpu", copy=True)
             for index, (name, parameter) in enumerate(zip(shards.names, shards.parameters, strict=True))
             if index not in shards.shard_of}  # fmt: skip
    values = {**whole, **uncut, **{name: buffer.to("cpu", copy=True) for name, buffer in _buffers(model)}}
    values.update({alias: values[name] for alias, name in _aliases(model, shards).items()})
    return values
