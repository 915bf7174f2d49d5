"""Horovod's variables that steer its engine alone, with what to use instead where a collective runs outside it.

The names are those that Horovod 0.28.1 reads in horovod/common (common.h, operations.cc, env_parser.cc, logging.cc).
Left out are those that hvdkit's collectives follow too (timeline, stall check) or that say where the ranks are.
"""

import logging
import os
from collections.abc import Mapping

_log = logging.getLogger(__name__)

_SWITCHES = {
    "HOROVOD_HIERARCHICAL_ALLREDUCE": 'strategy="hierarchical"',
    "HOROVOD_HIERARCHICAL_ALLGATHER": 'strategy="hierarchical"',
    "HOROVOD_TORUS_ALLREDUCE": 'strategy="hierarchical"',
    "HOROVOD_AUTOTUNE": 'strategy="auto", which measures',
    "HOROVOD_DISABLE_GROUP_FUSION": "bucket_bytes= and groups=",
    "HOROVOD_DISABLE_NVTX_RANGES": "nothing: there are no NVTX ranges",
    "HOROVOD_ENABLE_ASYNC_COMPLETION": "nothing: it is for CUDA streams",
    "HOROVOD_ENABLE_XLA_OPS": "nothing: it is for TensorFlow",
    "HOROVOD_MPI_THREADS_DISABLE": 'strategy="horovod"',
    "HOROVOD_LOG_HIDE_TIME": "Python's logging",
}
"""Off unless set to a number above 0, so that 0 asks for nothing."""

_VALUES = {
    "HOROVOD_FUSION_THRESHOLD": "bucket_bytes=",
    "HOROVOD_CYCLE_TIME": "nothing: a bucket starts when it is full",
    "HOROVOD_CACHE_CAPACITY": "nothing: buckets are agreed on once",
    "HOROVOD_BATCH_D2D_MEMCOPIES": "nothing: it is for GPU memory",
    "HOROVOD_NUM_NCCL_STREAMS": 'strategy="horovod" for NCCL',
    "HOROVOD_CPU_OPERATIONS": "strategy=",
    "HOROVOD_CCL_CACHE": 'strategy="horovod" for oneCCL',
    "HOROVOD_GLOO_IFACE": "your MPI's setting, for Open MPI OMPI_MCA_btl_tcp_if_include",
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
    "HOROVOD_THREAD_AFFINITY": "the launcher's binding, for Open MPI --bind-to",
    "HOROVOD_LOG_LEVEL": "Python's logging",
}

_TUNING = (
    "HOROVOD_AUTOTUNE_LOG",
    "HOROVOD_AUTOTUNE_WARMUP_SAMPLES",
    "HOROVOD_AUTOTUNE_STEPS_PER_SAMPLE",
    "HOROVOD_AUTOTUNE_BAYES_OPT_MAX_SAMPLES",
    "HOROVOD_AUTOTUNE_GAUSSIAN_PROCESS_NOISE",
)
"""Options of HOROVOD_AUTOTUNE; they say nothing that it does not."""

_said: list[str] = []


def ignored_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables set in `environ` that hvdkit's own collectives ignore, each as `NAME (what to use instead)`.

    Adasum goes through the engine always, and so do its variables. A switch that is off is not named.
    """
    instead = {**_SWITCHES, **_VALUES, **dict.fromkeys(_TUNING, _SWITCHES["HOROVOD_AUTOTUNE"])}
    return [
        f"{name} ({instead[name]})"
        for name in instead
        if environ.get(name) and (name not in _SWITCHES or _is_on(environ[name]))
    ]


def warn_of_ignored_variables(rank: int, environ: Mapping[str, str] = os.environ) -> None:
    """On rank 0, name in one line the ignored variables that were not named before in this process.

    To be called at the first collective that does not run in Horovod's engine.
    """
    fresh = [text for text in ignored_variables(environ) if text not in _said]
    if rank == 0 and fresh:
        _said.extend(fresh)
        _log.warning(
            "Horovod's engine alone follows these variables; for hvdkit's collectives use: %s", ", ".join(fresh)
        )


def _is_on(value: str) -> bool:
    try:
        return float(value) > 0
    except ValueError:
        return False
