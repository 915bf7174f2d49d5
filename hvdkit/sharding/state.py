"""What the whole state and a rank's part of it have in common: names, groups, buffers, a piece's optimizer state."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hvdkit.errors import HvdkitError
from hvdkit.sharding.optimizer import Sharded
from hvdkit.sharding.shards import HeldPiece, Shards

State = dict[str, Any]


def sharded_of(optimizer: torch.optim.Optimizer) -> Sharded:
    """`optimizer` itself. Raises HvdkitError unless `hvd.shard` has made it."""
    if not isinstance(optimizer, Sharded):
        raise HvdkitError(f"this {type(optimizer).__name__} is not sharded: hvd.shard(model, optimizer) makes it so")
    return optimizer


def named_tensors(model: nn.Module, shards: Shards) -> dict[str, torch.Tensor]:
    """The parameters and buffers that a state dict of the model has, tied parameters by their first name alone."""
    return {**dict(zip(shards.names, shards.parameters, strict=True)), **dict(buffers_of(model))}


def buffers_of(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The buffers that a state_dict has, by the names it gives them."""
    found = []
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found.append((f"{prefix}.{name}" if prefix else name, buffer))
    return found


def aliases_of(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Further names of tied parameters, and the first name of each."""
    first = {id(parameter): name for name, parameter in zip(shards.names, shards.parameters, strict=True)}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if name != first[id(parameter)]}


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group without its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def named_groups(sharded: Sharded) -> list[dict[str, Any]]:
    """The parameter groups, with the names of whole parameters in place of this rank's pieces."""
    return [
        {**options_of(group), "params": [sharded.shards.names[index] for index in indices]}
        for group, indices in zip(sharded.param_groups, sharded.group_indices, strict=True)
    ]


def numbered(entries_of_name: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> State:
    """An optimizer's state dict as torch has it, by numbers instead of names."""
    number_of: dict[str, int] = {}
    numbered_groups = []
    for group in groups:
        for name in group["params"]:
            number_of.setdefault(name, len(number_of))
        numbered_groups.append({**group, "params": [number_of[name] for name in group["params"]]})
    state = {number_of[name]: entries for name, entries in entries_of_name.items()}
    return {"state": state, "param_groups": numbered_groups}


def entries_of(sharded: Sharded, held: HeldPiece) -> dict[str, Any]:
    """The optimizer's state of a piece, and its float32 master weights, if it has any, as "master"."""
    entries = dict(sharded.state.get(held.tensor, {}))
    if held.target is not None:
        entries["master"] = held.tensor.detach()
    return entries


def put_entry(sharded: Sharded, held: HeldPiece, key: str, value: Any) -> None:
    """Give a piece a copy of one of the entries of `entries_of`; of "master" only where it has master weights."""
    if key != "master":
        sharded.state[held.tensor][key] = value.clone() if torch.is_tensor(value) else value
    elif held.target is not None:
        held.tensor.copy_(value)


def forget_state(sharded: Sharded) -> None:
    """Forget an unfinished step, what is gathered, and the optimizer's state, before another is loaded."""
    sharded._reducer.restart()
    if sharded.layers is not None:
        sharded.layers.release_all()
    sharded.state.clear()
