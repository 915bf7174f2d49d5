"""Horovod's functions on objects, parameters and optimizer state, and the halves of `join`.

`broadcast_optimizer_state` is hvdkit's own. Horovod's makes a real `step()` with zero gradients to create state,
which changes Adam's state and, with weight decay, the weights; and it casts what it cannot name.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hvdkit.runtime.dropin.operations import broadcast_async_, named, synchronize
from hvdkit.runtime.engine import horovod
from hvdkit.runtime.startup import renew_world

_functions = horovod("horovod.torch.functions")
_ops = horovod("horovod.torch.mpi_ops")
# Horovod names an unnamed one after the type of the object, which may differ between ranks: they then wait for ever.
allgather_object = named(_functions.allgather_object)
broadcast_object = named(_functions.broadcast_object)


def begin_join(device: int = -1) -> int:
    """Tell Horovod's engine that this rank has joined; it takes part in reductions with zeros. Returns a handle."""
    result = torch.tensor(-1, dtype=torch.int32)
    handle: int = _ops.mpi_lib.horovod_torch_join(result, device)
    _ops._handle_map[handle] = (None, result)
    return handle


def end_join(handle: int) -> int:
    """Wait until all ranks have joined; returns the rank that joined last. Collective."""
    last = int(_ops.synchronize.__wrapped__(handle))  # which others may keep waiting for long: no stall
    renew_world()  # optimizers may have agreed on new plans while this rank or others were not asked
    return last


@functools.wraps(_functions.broadcast_parameters)
def broadcast_parameters(params: Any, root_rank: int) -> None:
    """Give every rank rank `root_rank`'s values of `params`, in place. Collective.

    `params` is a `state_dict()`, a list of tensors, or a list of (name, tensor), the same on every rank. Raises
    ValueError for anything else.
    """
    if isinstance(params, dict):
        pairs = sorted(params.items())
    elif isinstance(params, list):
        pairs = [item if isinstance(item, tuple) else (None, item) for item in params]
    else:
        raise ValueError(f"invalid params of type: {type(params)}")
    for handle in [broadcast_async_(tensor, root_rank, name) for name, tensor in pairs]:
        synchronize(handle)


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor in a structure that travels as an object."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str


@functools.wraps(_functions.broadcast_optimizer_state)
def broadcast_optimizer_state(optimizer: Any, root_rank: int, model: Any = None) -> None:
    """Give every rank rank `root_rank`'s optimizer state and options, exactly. Collective.

    Takes no step and changes nothing on the root. Works for every optimizer, plain or distributed, whatever its
    state holds: nested containers, tensors of any dtype, no state yet. `model` is accepted as in Horovod and not
    needed. Raises ValueError on all ranks if their parameter groups differ in number of parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    tensors: list[torch.Tensor] = []
    packed = None
    rank = horovod().rank()
    if rank == root_rank:
        options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        # Most state belongs to a parameter; some optimizers keep more under names of their own.
        state = [(index_of.get(id(key)), key, value) for key, value in optimizer.state.items()]
        state = [(index, None if isinstance(key, torch.Tensor) else key, value) for index, key, value in state]
        counts = [len(group["params"]) for group in optimizer.param_groups]
        packed = _pack((counts, options, state), tensors)
    packed = broadcast_object(packed, root_rank=root_rank, name="hvdkit.optimizer_state")
    counts, options, state = packed
    mine = [len(group["params"]) for group in optimizer.param_groups]
    same = horovod().allgather_object(mine == counts, name="hvdkit.optimizer_state.same")
    if not all(same):
        raise ValueError(
            f"broadcast_optimizer_state: rank {root_rank} has parameter groups of {counts} parameters, this rank of "
            f"{mine}; build the same optimizer on every rank"
        )
    if rank != root_rank:
        _allocate(packed, tensors, parameters)
    broadcast_parameters([(f"hvdkit.optimizer_state.{i}", tensor) for i, tensor in enumerate(tensors)], root_rank)
    if rank == root_rank:
        return
    for group, option in zip(optimizer.param_groups, _unpack(options, tensors), strict=True):
        members = group["params"]
        group.clear()
        group.update(option, params=members)
    optimizer.state.clear()
    for index, key, value in _unpack(state, tensors):
        optimizer.state[key if index is None else parameters[index]] = value


def _pack(item: Any, tensors: list[torch.Tensor]) -> Any:
    """`item` with every tensor replaced by a `_Place`, and the tensors appended to `tensors`, contiguous."""
    if isinstance(item, torch.Tensor):
        tensors.append(item.detach().contiguous())
        return _Place(len(tensors) - 1, tuple(item.shape), item.dtype, item.device.type)
    return _map(item, lambda part: _pack(part, tensors))


def _unpack(item: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(item, _Place):
        return tensors[item.number]
    return _map(item, lambda part: _unpack(part, tensors))


def _allocate(item: Any, tensors: list[torch.Tensor], parameters: list[torch.Tensor]) -> None:
    """Append an empty tensor for each `_Place`, in the order of their numbers, on this rank's own device."""
    places: dict[int, _Place] = {}

    def collect(part: Any) -> Any:
        if isinstance(part, _Place):
            places[part.number] = part
            return part
        return _map(part, collect)

    collect(item)
    accelerator = next((p.device for p in parameters if p.device.type != "cpu"), torch.device("cpu"))
    for number in sorted(places):
        place = places[number]
        device = torch.device("cpu") if place.device == "cpu" else accelerator
        tensors.append(torch.empty(place.shape, dtype=place.dtype, device=device))


def _map(item: Any, function: Any) -> Any:
    """`item` with `function` applied to what its container holds; a leaf as it is."""
    if isinstance(item, Mapping):
        return {key: function(value) for key, value in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(function(value) for value in item))
    if isinstance(item, list | tuple):
        return type(item)(function(value) for value in item)
    return item
