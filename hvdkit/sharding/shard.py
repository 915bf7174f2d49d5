"""`shard()`: one call that cuts a model's optimizer state, gradients and parameters over ranks."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from hvdkit.collectives import Collectives, DirectCollectives, check_strategy, direct_collectives, why_no_direct
from hvdkit.errors import HvdkitError
from hvdkit.optim.compression import NoneCompressor
from hvdkit.optim.connection import Connection
from hvdkit.optim.options import ReducerOptions
from hvdkit.optim.wrapped import Distributed
from hvdkit.runtime import World, require_world
from hvdkit.runtime.dropin.functions import broadcast_parameters
from hvdkit.sharding.elementwise import is_elementwise
from hvdkit.sharding.layers import Layers, check_layers, find_layers
from hvdkit.sharding.optimizer import Sharded, wrap
from hvdkit.sharding.partition import Flat, plan_flats, plan_whole
from hvdkit.sharding.shards import Shard, Shards
from hvdkit.sharding.storage import NodeStorage, PartStorage, Storage, WholeStorage

Stage = Literal[1, 2, 3]
_numbers = itertools.count()


def shard(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage = 3,
    *,
    shared_weights: bool = False,
    master_weights: bool = True,
    elementwise: bool | None = None,
    layers: Sequence[nn.Module] | None = None,
    weight: float | None = None,
    backward_passes_per_step: int = 1,
    strategy: str = "auto",
    overlap: bool | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Cut what `model` and `optimizer` hold over all N ranks; returns both, the same objects. Collective.

    Stage 1 cuts the optimizer's state, 2 the gradients too, 3 the parameters too: with d bytes of parameters and Adam a
    rank then holds 2d + 2d/N, d + 3d/N, or 4d/N, where it held 4d. Every rank starts from rank 0's parameters and
    buffers. Training goes on as with `DistributedOptimizer`, whose methods (`weigh`, `no_sync`, ...) the optimizer
    has, and equals that of one process on all ranks' batches. Gradients are clipped by `optimizer.clip_grad_norm_`.

    Source: S. Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
    arXiv:1910.02054.

    Args:
        stage: 1, 2 or 3. At stage 3 parameters can be used within the forward pass of their layer alone; elsewhere
            they read as NaN, see `optimizer.full_parameter` and `hvd.full_state_dict`.
        shared_weights: keep one copy of the weights in the node's shared memory (stages 1 and 2, all ranks on one
            node, CPUs): no all-gather, 1/N of the memory. A write to a weight outside the optimizer is then seen by
            all ranks, and done once by each.
        master_weights: step float32 copies of 16-bit parameters.
        elementwise: whether the optimizer's step treats every element by itself; known for torch's own. Others get
            whole parameters, each on one rank, which stages 1 and 2 can do.
        layers: at stage 3, the modules that are gathered one at a time; by default the members of lists
            and sequences.
        weight: this rank's capability, as in `DistributedOptimizer`.
        backward_passes_per_step: as in `DistributedOptimizer`.
        strategy: what sums and gathers: "auto", one of hvdkit's own algorithms, or "horovod".
        overlap: whether communication runs beside computation; by default where that pays.

    Raises HvdkitError for an optimizer that cannot be cut at this stage, and for parameters that are not the model's.
    """
    world = require_world()
    check_strategy(strategy)
    if stage not in (1, 2, 3):
        raise ValueError(f"stage={stage!r} is not 1, 2 or 3 (0, nothing cut, is hvd.DistributedOptimizer)")
    if isinstance(optimizer, Distributed):
        raise HvdkitError("shard() takes an optimizer of torch's, not one that is distributed already")
    cuts = is_elementwise(optimizer, stage, elementwise)
    names, parameters = _named_parameters(model, optimizer)
    connect = Connection(None, strategy, lambda: list(parameters))
    collectives = connect()
    assert collectives is not None, "a world has collectives"
    _check_offers(collectives, strategy)
    if shared_weights and (why := _why_not_shared(stage, world, strategy)):
        raise HvdkitError(f"shared_weights=True cannot be had: {why}; leave it out")
    modules = _units(model, layers) if stage == 3 else [model]
    plans: list[tuple[nn.Module, list[Flat]]] = []
    for module, indices in _members(modules, parameters):
        trained = [index for index in indices if stage == 3 or parameters[index].requires_grad]
        plans.append((module, (plan_flats if cuts else plan_whole)(parameters, trained, collectives.size)))
    overlaps = overlap if overlap is not None else world.threads > torch.get_num_threads() or world.cross_size > 1
    settings = (stage, shared_weights, master_weights, backward_passes_per_step, strategy, names, plans_of(plans))
    key, overlaps = _agree(collectives, settings, overlaps)
    broadcast_parameters(model.state_dict(), root_rank=0)
    memory = {id(flat): _memory(flat, stage, collectives, shared_weights) for _, flats in plans for flat in flats}
    made = [
        (module, [
            Shard(flat, _storage(flat, parameters, stage, collectives.index, memory[id(flat)]), parameters,
                  collectives.index, keeps_shape=not cuts, has_masters=master_weights)
            for flat in flats
        ])
        for module, flats in plans
    ]  # fmt: skip
    shards = Shards(stage, names, parameters, [item for _, items in made for item in items], collectives, key)
    if shards.is_shared_by_node:
        shards.wait_for_all()
    hooked = Layers(model, made, collectives, key=key, runs_ahead=overlaps) if stage == 3 else None
    options = ReducerOptions(
        NoneCompressor, passes=backward_passes_per_step, weight=weight, overlap=overlaps and stage > 1
    )
    wrap(optimizer, shards, hooked, options, connect)
    assert isinstance(optimizer, Sharded)
    model.zero_grad = functools.partial(_zero_grad, optimizer)  # type: ignore[method-assign]
    if stage < 3:
        model.register_load_state_dict_post_hook(lambda *_: shards.read_masters())
    return model, optimizer


def _zero_grad(optimizer: Sharded, set_to_none: bool = True) -> None:
    """`model.zero_grad()`, whose gradients are with the optimizer."""
    optimizer.zero_grad()


def _check_offers(collectives: Collectives, strategy: str) -> None:
    """Raise ValueError if `strategy` names an algorithm that cannot scatter and gather."""
    if not isinstance(collectives, DirectCollectives) or strategy == "auto":
        return
    offered = [name for name in collectives.algorithms.names("reduce_scatter")
               if name in collectives.algorithms.names("all_gather")]  # fmt: skip
    if strategy not in offered:
        raise ValueError(f"strategy={strategy!r} cannot scatter and gather here; use one of auto, horovod, "
                         f"{', '.join(offered)}")  # fmt: skip


def _named_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[str], list[nn.Parameter]]:
    """The model's parameters, tied ones once; checks that those the optimizer has are those that are trained."""
    named = dict(model.named_parameters())
    if not named:
        raise HvdkitError("shard(): the model has no parameters")
    by_id = {id(parameter): name for name, parameter in named.items()}
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if stepped - by_id.keys():
        raise HvdkitError("shard(): the optimizer has parameters that are not the model's")
    missing = [name for name, p in named.items() if p.requires_grad and id(p) not in stepped]
    if missing:
        raise HvdkitError(
            f"shard(): {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} require gradients and are not in "
            "the optimizer; add them, or freeze them by requires_grad_(False)"
        )
    odd = [name for name, p in named.items() if p.is_complex() or p.layout != torch.strided]
    if odd:
        raise HvdkitError(f"shard(): {odd[0]} is complex or sparse, which cannot be cut")
    return list(named), list(named.values())


def can_share_weights(world: World, strategy: str = "auto") -> bool:
    """Whether `shared_weights=True` can be had in this world, at stages 1 and 2."""
    return _why_not_shared(1, world, strategy) is None


def _why_not_shared(stage: int, world: World, strategy: str) -> str | None:
    if stage == 3:
        return "at stage 3 each rank keeps its part alone"
    if world.device.type != "cpu":
        return "the weights are on GPUs"
    if world.cross_size > 1:
        return "the ranks are on several nodes"
    why = 'strategy="horovod" has no shared memory' if strategy == "horovod" else why_no_direct(world)
    if why is None and "shared_memory" not in direct_collectives(world).algorithms.names("all_reduce"):
        why = "the node's shared memory has no room"
    return why


def _units(model: nn.Module, layers: Sequence[nn.Module] | None) -> list[nn.Module]:
    """The model itself, and its layers."""
    found = find_layers(model) if layers is None else list(layers)
    check_layers(model, found)
    return [model, *found]


def _members(modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> list[tuple[nn.Module, list[int]]]:
    """Each module's parameters: those below one layer alone are the layer's, all others the model's."""
    model, *layers = modules
    owners: dict[int, list[int]] = {}
    for number, layer in enumerate(layers, start=1):
        for parameter in layer.parameters():
            owners.setdefault(id(parameter), []).append(number)
    outside = {id(p) for module in _outside(model, layers) for p in module.parameters(recurse=False)}
    members: list[list[int]] = [[] for _ in modules]
    for index, parameter in enumerate(parameters):
        owner = owners.get(id(parameter), [])
        is_one = len(owner) == 1 and id(parameter) not in outside
        members[owner[0] if is_one else 0].append(index)
    return list(zip(modules, members, strict=True))


def _outside(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def plans_of(plans: Sequence[tuple[nn.Module, Sequence[Flat]]]) -> list[Any]:
    """What must be the same on all ranks of how parameters are cut."""
    return [[(flat.indices, flat.lengths, flat.counts, str(flat.dtype), flat.trains) for flat in flats]
            for _, flats in plans]  # fmt: skip


def _agree(collectives: Collectives, settings: Any, overlaps: bool) -> tuple[str, bool]:
    """What the names of this model's collectives begin with, and whether all ranks overlap. Collective.

    Raises HvdkitError on all ranks if their `settings` differ.
    """
    everyones = collectives.gather_objects((next(_numbers), settings, overlaps), "hvdkit.sharding.agree")
    for rank, other in enumerate(everyones):
        if other[1] != everyones[0][1]:
            raise HvdkitError(
                f"shard(): ranks disagree: rank {rank} and the first rank pass other options, or models with other "
                "parameters, frozen ones or layers"
            )
    return f"hvdkit.sharding.{everyones[0][0]}", all(item[2] for item in everyones)


def _memory(flat: Flat, stage: int, collectives: Collectives, shared_weights: bool) -> torch.Tensor | None:
    """Memory that a flat needs besides the parameters': for the part, or one whole flat for all ranks of the node."""
    count = flat.counts[collectives.index]
    if stage == 3 and isinstance(collectives, DirectCollectives) and flat.numel:
        # Where the ranks of a node share memory, they gather without copies between.
        return collectives.empty_shared((max(flat.counts),), flat.dtype)[:count]
    if stage == 3:
        return torch.empty(count, dtype=flat.dtype, device=flat.device)
    if shared_weights and flat.numel:
        assert isinstance(collectives, DirectCollectives)
        return collectives.shared_by_node((flat.numel,), flat.dtype)
    return None


def _storage(
    flat: Flat, parameters: Sequence[torch.Tensor], stage: int, rank: int, memory: torch.Tensor | None
) -> Storage:
    if memory is None:
        return WholeStorage(flat, parameters, rank)
    return (PartStorage if stage == 3 else NodeStorage)(flat, parameters, rank, memory)
