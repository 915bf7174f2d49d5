"""`DistributedOptimizer`: Horovod's name and signature, hvdkit's own implementation."""

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from hvdkit.collectives import check_strategy as check_strategy_name
from hvdkit.collectives import why_no_direct
from hvdkit.optim.buckets import DEFAULT_BUCKET_BYTES
from hvdkit.optim.compression import BucketCompressor, Compression, resolve
from hvdkit.optim.options import ReducerOptions
from hvdkit.optim.wrapped import Settings, wrap
from hvdkit.runtime import World, require_world
from hvdkit.runtime.engine import horovod

_horovod = horovod()
Adasum, Average, Sum = _horovod.Adasum, _horovod.Average, _horovod.Sum
_OPS = {getattr(_horovod, name.capitalize()): name for name in ("average", "sum", "adasum", "min", "max", "product")}


def DistributedOptimizer(  # noqa: N802 - Horovod's name
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: int = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | list[list[torch.Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: Any = _horovod.global_process_set,
    *,
    weight: float | None = None,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    strategy: str = "auto",
    overlap: bool | None = None,
) -> Any:
    """Make `optimizer` aggregate gradients over all ranks; returns the same object, now distributed.

    When `backward()` returns, `.grad` holds the aggregated gradient on every rank. Not collective itself; the first
    backward is, and compares the ranks' parameters.

    Args:
        optimizer: any torch optimizer. Its class, state, defaults, hooks and schedulers are kept.
        named_parameters: `model.named_parameters()`; optional, used in messages. Must name every parameter.
        compression: `Compression.none`, `.fp16`, `.bf16`, `.int8`, `.topk(ratio=...)`, `.powersgd(rank=...)`, their
            names as text ("powersgd:rank=8"), or an object with `compress` and `decompress`, as in Horovod.
        backward_passes_per_step: backward passes whose gradients are summed locally before they are aggregated.
        op: `Average`, `Sum`, `Adasum` (needs a power of 2 of ranks), `Min`, `Max` or `Product`.
        gradient_predivide_factor: with `Average`, divide by it before the sum and by size / it afterwards.
        num_groups: deprecated, as in Horovod.
        groups: gradients that are reduced together: a number of groups, or lists of parameters.
        sparse_as_dense: reduce sparse gradients as dense ones (the result is sparse again).
        process_set: the ranks to aggregate over; on the others `optimizer` keeps its local gradients.
        weight: this rank's fixed weight (its capability, say), 0 or more. With `Average` the result is
            sum_i weight_i grad_i / sum_i weight_i. The same for all ranks by default. See also `weigh()`.
        bucket_bytes: size at which a bucket of gradients is closed and reduced.
        strategy: the algorithm that reduces gradients: "auto" (the cheapest by measurement for each bucket), "mpi",
            "ring", "tree", "shared_memory", "hierarchical", or "horovod" for Horovod's engine, which is also what
            Gloo launches, gradients on GPUs and `Adasum` get.
        overlap: whether hvdkit's own algorithms reduce buckets on a thread of their own while backward runs; None for
            where a core is free (fewer torch threads than this rank's share of the cores). Horovod's engine always
            does. Not used while several optimizers share the ranks.

    Raises ValueError for arguments that contradict each other, with Horovod's words where Horovod has them, and
    before `init()`.
    """
    require_world()
    _check_arguments(op, gradient_predivide_factor, backward_passes_per_step, weight, bucket_bytes)
    if num_groups != 0:
        warnings.warn(
            "Parameter `num_groups` has been replaced by `groups` and will be removed in v0.23.0.",
            DeprecationWarning,
            stacklevel=2,
        )
        groups = num_groups if groups is None else groups
    is_global = process_set is _horovod.global_process_set or process_set.process_set_id == 0
    if op == Adasum and not is_global:
        raise NotImplementedError("Adasum does not support non-global process sets yet.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    compression = resolve(compression)
    if isinstance(compression, BucketCompressor) and op not in (Average, Sum):
        raise ValueError(f"compression={compression.name} goes with op=Average and op=Sum")
    options = ReducerOptions(
        compression=compression,
        op=_OPS[op],  # type: ignore[arg-type]
        passes=backward_passes_per_step,
        predivide=gradient_predivide_factor,
        groups=_group_indices(groups, parameters),
        sparse_as_dense=sparse_as_dense,
        weight=weight,
        bucket_bytes=bucket_bytes,
        overlap=overlap,
    )
    names = _names(optimizer, parameters, named_parameters)
    check_strategy(strategy, require_world(), (parameter.device for parameter in parameters), op)
    return wrap(optimizer, Settings(options, names, None if is_global else process_set, strategy))


def check_strategy(strategy: str, world: World, devices: Iterable[torch.device], op: int = Average) -> None:
    """Raise ValueError if `strategy` cannot reduce gradients on `devices` in this world."""
    check_strategy_name(strategy)
    if strategy in ("auto", "horovod"):
        return
    why = why_no_direct(world)
    if op == Adasum:
        why = "Adasum is an operation of Horovod's engine"
    elif any(device.type != "cpu" for device in devices):
        why = "there are parameters that are not on the CPU"
    if why is not None:
        raise ValueError(f'strategy={strategy!r} cannot be had: {why}; use "auto" or "horovod"')


def _check_arguments(op: int, predivide: float, passes: int, weight: float | None, bucket_bytes: int) -> None:
    if op not in _OPS:
        raise ValueError(f"op={op!r} is not one of hvd.{', hvd.'.join(name.capitalize() for name in _OPS.values())}")
    if predivide != 1.0 and _horovod.rocm_built():
        raise ValueError("gradient_predivide_factor not supported yet with ROCm")
    if predivide != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor not supported with op != Average")
    if passes <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    if weight is not None and not 0 <= weight < float("inf"):
        raise ValueError(f"weight={weight} must be a finite number, 0 or more")
    if weight is not None and op != Average:
        raise ValueError("weight needs op=Average")
    if bucket_bytes < 0:
        raise ValueError(f"bucket_bytes={bucket_bytes} must be 0 or more")


def _names(
    optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], named: Iterable[Any] | None
) -> tuple[str, ...]:
    """One name per parameter; checks what Horovod checks, with its words."""
    if named is None:
        return tuple(
            f"allreduce.noname.{i}.{j}"
            for i, group in enumerate(optimizer.param_groups)
            for j in range(len(group["params"]))
        )
    pairs = list(named)
    if any(not isinstance(pair, tuple) for pair in pairs):
        raise ValueError(
            "named_parameters should be a sequence of tuples (name, parameter), usually produced by "
            "model.named_parameters()."
        )
    duplicates = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if duplicates:
        raise ValueError(
            f"Parameter names in named_parameters must be unique. Found duplicates: {', '.join(duplicates)}"
        )
    by_id = {id(parameter): name for name, parameter in pairs}
    unnamed = [id(parameter) for parameter in parameters if id(parameter) not in by_id]
    if unnamed:
        raise ValueError(
            "named_parameters was specified, but one or more model parameters were not named. Python object ids: "
            f"{', '.join(map(str, unnamed))}"
        )
    return tuple(by_id[id(parameter)] for parameter in parameters)


def _group_indices(
    groups: int | list[list[torch.Tensor]] | None, parameters: list[torch.Tensor]
) -> list[list[int]] | int | None:
    if groups is None:
        return None
    if not isinstance(groups, list):
        if groups <= 0:
            raise ValueError("groups should be a non-negative integer or a list of list of torch.Tensor.")
        return groups
    members = [member for group in groups for member in group]
    if any(not isinstance(member, torch.Tensor) for member in members):
        raise ValueError("groups must consist of torch.Tensor.")
    if len({id(member) for member in members}) < len(members):
        raise ValueError("A parameter can only appear once in groups.")
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    return [[index_of[id(member)] for member in group if id(member) in index_of] for group in groups]
