"""hvdkit: train language models on many workers with Horovod and MPI.

`import hvdkit as hvd` in place of `import horovod.torch as hvd` changes nothing but bugs and speed. Every public
name stands below, with the module that defines it; a name is loaded at its first use, so the import is light and
works without Horovod, whose absence the first use of a name of Horovod's then explains.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hvdkit.errors import HorovodMissingError, HvdkitError

__version__ = "0.1.0"

_HOME = {
    # loaded at first use too, so that `hvdkit doctor` and `hvdkit horovod build` can speak where torch does not load
    **dict.fromkeys(("World", "current_world", "init", "is_initialized", "launch_info", "shutdown"), "hvdkit.runtime"),
    # hvdkit's own implementations of Horovod's names
    "DistributedOptimizer": "hvdkit.optim",
    "Compression": "hvdkit.compression",
    **dict.fromkeys(("empty_shared", "join"), "hvdkit.collectives"),
    "merge_": "hvdkit.merge.live",
    **dict.fromkeys(("DiLoCo", "LocalSGD"), "hvdkit.local"),
    **dict.fromkeys(
        (
            "full_state_dict",
            "join_parts",
            "load_full_state_dict",
            "load_sharded_state_dict",
            "shard",
            "sharded_state_dict",
        ),
        "hvdkit.sharding",
    ),
    **dict.fromkeys(("Ensemble", "shapley_values"), "hvdkit.merge"),
    **dict.fromkeys(
        ("allgather_object", "broadcast_object", "broadcast_optimizer_state", "broadcast_parameters"),
        "hvdkit.runtime.dropin.functions",
    ),
    # Horovod's, with hvdkit's own collectives in the same file
    **dict.fromkeys(("start_timeline", "stop_timeline"), "hvdkit.runtime.dropin.timeline"),
    # Horovod's operations, with bfloat16 and `strategy=`
    **dict.fromkeys(
        (
            "allgather",
            "allgather_async",
            "allreduce",
            "allreduce_",
            "allreduce_async",
            "allreduce_async_",
            "broadcast",
            "broadcast_",
            "broadcast_async",
            "broadcast_async_",
            "grouped_allgather",
            "grouped_allgather_async",
            "grouped_allreduce",
            "grouped_allreduce_",
            "grouped_allreduce_async",
            "grouped_allreduce_async_",
            "grouped_reducescatter",
            "grouped_reducescatter_async",
            "reducescatter",
            "reducescatter_async",
        ),
        "hvdkit.collectives.strategies",
    ),
    **dict.fromkeys(("poll", "synchronize"), "hvdkit.collectives.handles"),
    **dict.fromkeys(("alltoall", "alltoall_async", "sparse_allreduce_async"), "hvdkit.runtime.dropin.operations"),
}

# Horovod's as they are
_HOROVOD = (
    *("Adasum", "Average", "Max", "Min", "Product", "Sum"),
    *("HorovodInternalError", "SyncBatchNorm"),
    *("ProcessSet", "add_process_set", "global_process_set", "remove_process_set"),
    "barrier",
    *("cross_rank", "cross_size", "local_rank", "local_size", "rank", "size"),
    *("ccl_built", "cuda_built", "ddl_built", "gloo_built", "mpi_built", "nccl_built", "rocm_built"),
    *("gloo_enabled", "mpi_enabled", "mpi_threads_supported"),
    *("check_extension", "mpi_lib_v2"),
)

_MODULES = ("compression", "elastic", "functions", "mpi_ops", "optimizer", "sync_batch_norm")

__all__ = [
    "HorovodMissingError",
    "HvdkitError",
    "run",
    *_HOME,
    *_HOROVOD,
    *_MODULES,
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"hvdkit.{name}")
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _HOROVOD or name == "run":
        from hvdkit.runtime.engine import horovod

        found = getattr(horovod("horovod" if name == "run" else "horovod.torch"), name)
    else:
        raise AttributeError(f"module 'hvdkit' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from hvdkit.compression import Compression as Compression
    from hvdkit.local import DiLoCo as DiLoCo
    from hvdkit.local import LocalSGD as LocalSGD
    from hvdkit.merge import Ensemble as Ensemble
    from hvdkit.merge import shapley_values as shapley_values
    from hvdkit.optim import DistributedOptimizer as DistributedOptimizer
    from hvdkit.runtime import World as World
    from hvdkit.runtime import current_world as current_world
    from hvdkit.runtime import init as init
    from hvdkit.runtime import is_initialized as is_initialized
    from hvdkit.runtime import launch_info as launch_info
    from hvdkit.runtime import shutdown as shutdown
