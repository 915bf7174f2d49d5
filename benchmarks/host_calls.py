"""The all-reduces of `bench_hosts.py` on every rank of a job: one library each, whose calls it times and checks."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_arms import start_gloo
from hvdkit.runtime.launcher import launch_info


def measure_all_reduces(library: str, sizes_and_repeats: Sequence[tuple[int, int]], folder: Path) -> dict[str, Any]:
    """Times (s) of each algorithm of `library` by size; raises ArithmeticError if a sum is wrong."""
    torch.set_num_threads(1)
    place = launch_info()
    calls, barrier, left_out, close = _start(library, folder)
    times: dict[str, dict[int, list[float]]] = {name: {} for name in calls}
    for nbytes, repeats in sizes_and_repeats:
        for name in calls:
            times[name][nbytes] = []
        data = torch.empty(nbytes // 4)
        expected = place.size * (place.size + 1) / 2
        for repeat in range(-1, repeats):  # one to warm up
            for name, call in calls.items():
                data.fill_(place.rank + 1)
                barrier()
                start = time.perf_counter()
                call(data)
                seconds = time.perf_counter() - start
                if not bool((data == expected).all()):
                    raise ArithmeticError(f"{name}: {nbytes} bytes: not all of the sum is {expected}")
                if repeat >= 0:
                    times[name][nbytes].append(seconds)
    barrier()
    close()
    return {"times": times, "left_out": left_out}


def _start(library: str, folder: Path) -> tuple[dict[str, Any], Any, dict[str, str], Any]:
    """The in-place sums of `library`, its barrier, which of its algorithms do not run and why, and what ends it."""
    if library.startswith("stock"):
        import horovod.torch as horovod

        horovod.init()
        call = lambda data: horovod.allreduce_(data, op=horovod.Sum, name="bench")  # noqa: E731
        return {library: call}, horovod.barrier, {}, horovod.shutdown
    if library.startswith("openmpi"):
        from hvdkit.runtime.mpi import load_mpi

        mpi = load_mpi()
        mpi.Init()
        world = mpi.COMM_WORLD
        return {library: lambda data: world.Allreduce(mpi.IN_PLACE, data.numpy())}, world.Barrier, {}, lambda: None
    if library == "gloo":
        start_gloo(folder)
        distributed = torch.distributed
        return {library: distributed.all_reduce}, distributed.barrier, {}, distributed.destroy_process_group
    import hvdkit as hvd
    from benchmarks.strategy_calls import usable_strategies
    from hvdkit.collectives import STRATEGIES

    world = hvd.init()
    # An engine that has just been used would take time from the next algorithm's turn.
    by_engine = ("horovod",)
    wanted = by_engine if library == "hvdkit-horovod" else tuple(name for name in STRATEGIES if name not in by_engine)
    usable, left_out = usable_strategies(wanted)
    return {f"hvdkit {name}": call for name, call in usable.items()}, world.comm.Barrier, left_out, hvd.shutdown
