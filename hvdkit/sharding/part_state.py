"""Saving and loading each rank's part of a sharded model and optimizer, and joining all parts to the whole state.

A part holds this rank's pieces by the parameters' names, with where each begins and ends; `join_parts` makes the whole
state of all ranks' parts in any one process, for another number of ranks or another stage.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hvdkit.errors import HvdkitError
from hvdkit.sharding.shards import Shards
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
from hvdkit.sharding.storage import PartStorage

_FORMAT = 1


@torch.no_grad()
def sharded_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """This rank's part: its pieces, their state, and what is not cut. Not collective; tensors share memory.

    For `load_sharded_state_dict` on as many ranks, and `join_parts`.
    """
    sharded = sharded_of(optimizer)
    shards = sharded.shards
    pieces = {}
    for shard in shards.shards:
        held_of = {held.piece: held for held in shard.held}
        for piece in shard.flat.pieces(shard.rank):
            held = held_of.get(piece)
            pieces[shards.names[piece.index]] = {
                "begin": piece.begin,
                "end": piece.end,
                "shape": tuple(shards.parameters[piece.index].shape),
                "value": piece.within(shard.storage.part),
                "state": entries_of(sharded, held) if held is not None else {},
            }
    uncut = {name for index, name in enumerate(shards.names)
             if index not in shards.shard_of or not shards.parameters[index].numel()}  # fmt: skip
    kept: dict[str, torch.Tensor] = {name: value for name, value in model.named_parameters() if name in uncut}
    kept.update(buffers_of(model))
    return {"format": _FORMAT, "rank": shards.collectives.index, "size": shards.collectives.size, "pieces": pieces,
            "kept": kept, "groups": named_groups(sharded), "aliases": aliases_of(model, shards)}  # fmt: skip


@torch.no_grad()
def load_sharded_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, part: State) -> None:
    """Load this rank's part, from `sharded_state_dict` of as many ranks, cut in the same way. Collective.

    Raises HvdkitError on all ranks, before anything is changed, if a part does not fit on any.
    """
    sharded = sharded_of(optimizer)
    shards = sharded.shards
    _check_parts(shards, part)
    forget_state(sharded)
    for shard in shards.shards:
        for piece in shard.flat.pieces(shard.rank):
            piece.within(shard.storage.part).copy_(part["pieces"][shards.names[piece.index]]["value"])
        shard.read_masters()
        for held in shard.held:
            for key, value in part["pieces"][shards.names[held.piece.index]]["state"].items():
                put_entry(sharded, held, key, value)
    targets = named_tensors(model, shards)
    for name, value in part["kept"].items():
        targets[name].detach().copy_(value)
    for group, saved in zip(sharded.param_groups, part["groups"], strict=True):
        group.update(options_of(saved))
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
        model[name], entries = _join_pieces(name, pieces)
        if entries:
            state[name] = entries
    for alias, name in first["aliases"].items():
        model[alias] = model[name]
    return {"model": model, "optimizer": numbered(state, first["groups"])}


def _join_pieces(name: str, pieces: list[State]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The whole parameter `name` and its state."""
    pieces.sort(key=lambda piece: piece["begin"])
    first, shape = pieces[0], pieces[0]["shape"]
    if [piece["end"] for piece in pieces[:-1]] != [piece["begin"] for piece in pieces[1:]] or (
        first["begin"] != 0 or pieces[-1]["end"] != torch.Size(shape).numel()
    ):
        raise HvdkitError(f"join_parts: the pieces of {name} leave a gap or overlap")

    def joined(values: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([value.reshape(-1) for value in values]).view(shape)

    entries = {}
    for key, value in first["state"].items():
        is_cut = torch.is_tensor(value) and value.numel() == first["end"] - first["begin"] and value.dim()
        entries[key] = joined([piece["state"][key] for piece in pieces]) if is_cut else value
    return joined([piece["value"] for piece in pieces]), entries


def _check_parts(shards: Shards, part: Any) -> None:
    """Raise HvdkitError on all ranks if a part does not fit on any. Collective."""
    problems = shards.collectives.gather_objects([_why_no_part(shards, part)], "hvdkit.sharding.load_part")
    for rank, found in enumerate(problems):
        if found is not None and found[0]:
            raise HvdkitError(f"load_sharded_state_dict: on rank {rank} {found[0]}")


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
