"""`init()` and `shutdown()`: starts MPI, then Horovod, and holds the one current `World` of this process."""

import atexit
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

import torch

from hvdkit.errors import DivergenceError, LaunchError
from hvdkit.runtime.agreement import gather_objects
from hvdkit.runtime.engine import horovod
from hvdkit.runtime.failure import FailureHooks
from hvdkit.runtime.first_check import check_unverified
from hvdkit.runtime.launcher import LaunchInfo, launch_info
from hvdkit.runtime.mpi import finish_mpi, start_mpi
from hvdkit.runtime.watch import Watch
from hvdkit.runtime.watch.datagrams import Datagrams
from hvdkit.runtime.watch.engine_timeline import engine_writes_beside, timeline_path
from hvdkit.runtime.watch.limits import StallLimits, engine_leaves_stalls, stall_limits
from hvdkit.runtime.words import who_has_what
from hvdkit.runtime.world import World, fair_threads, usable_cores

_IDLE_CYCLE_MS, _IDLE_CYCLE_MS_BETWEEN_NODES = "1000", "86400000"
"""How often an engine looks for other ranks while its own asks for nothing.

Between nodes it must not: Open MPI 4.1 has stopped moving data over TCP for seconds where an engine's cycle met a
collective of another thread.
"""

NOT_INITIALIZED = "Horovod has not been initialized; use hvd.init()."


class _Process:
    """What this process holds for its lifetime: the current world and what happens when the process fails or ends."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.generation = 0
        self.unnamed: Counter[int] = Counter()
        self.hooks: FailureHooks | None = None
        self.at_exit_installed = False

    def watch_for_failure(self, rank: int, size: int) -> None:
        """From now until its end, a failure of this process ends the job, which goes on after `shutdown()`."""
        if self.hooks is not None:
            self.hooks.remove()
        self.hooks = FailureHooks(rank, size)


_process = _Process()


def init(comm: Any = None, process_sets: Any = None) -> World:
    """Start Horovod (and MPI before it) and return this process's `World`. Collective over all ranks.

    Args:
        comm: as in Horovod: None for all ranks, a list of ranks of MPI_COMM_WORLD, or an mpi4py communicator.
        process_sets: as in Horovod: a list of `ProcessSet`, or `"dynamic"`.

    Calling it again while initialised returns the same world, as in Horovod. Raises HorovodMissingError without
    Horovod, LaunchError where the launcher announced several ranks and this process found itself alone, ValueError
    where `comm` leaves this process out, BuildError where a Horovod that was never checked computes wrong results,
    DivergenceError where ranks ask for different kinds of process sets.
    """
    engine = horovod()
    comm = list(comm) if isinstance(comm, Iterable) else comm
    if _process.world is not None and is_initialized():
        if process_sets and not isinstance(process_sets, str):
            engine.mpi_ops.init(process_sets=process_sets)  # finds those that exist, refuses others
        return _process.world
    launch = launch_info()
    if launch.size > 1:
        _process.watch_for_failure(launch.rank, launch.size)
    mpi = None if launch.uses_gloo else start_mpi(launch.local_size)
    if mpi is not None and mpi.COMM_WORLD.Get_size() == 1 and launch.size > 1:
        raise LaunchError(
            f"{launch.launcher} announced {launch.size} ranks, but this process found itself alone: the launcher "
            f"and the MPI library do not belong together. MPI library here: {mpi.Get_library_version().split(',')[0]}"
            f"; use the launcher of that MPI (`hvdkit run -np {launch.size} -- ...` picks it, `hvdkit doctor` "
            "compares them)"
        )
    own = None if mpi is None else _communicator(mpi, comm)
    if mpi is not None:
        _check_process_sets(own, process_sets)
        # hvdkit's own collectives do the work then: an engine that nobody uses must not take time from it.
        idle_ms = _IDLE_CYCLE_MS if _are_on_one_node(mpi, own) else _IDLE_CYCLE_MS_BETWEEN_NODES
        os.environ.setdefault("HOROVOD_IDLE_CYCLE_TIME", idle_ms)
    # Horovod would use a list of ranks again in every later init(), whatever that asks for; a communicator it forgets.
    limits = _limits_of_stalls(mpi, launch)
    with engine_writes_beside(), engine_leaves_stalls(limits, uses_gloo=mpi is None):
        engine.mpi_ops.init(comm=own if own is not None and isinstance(comm, list) else comm, process_sets=process_sets)
    if not _process.at_exit_installed:
        # Registered after Horovod's own handler, so that it runs first.
        atexit.register(_finish)
        _process.at_exit_installed = True
    _process.generation += 1
    _process.unnamed.clear()
    _process.world = _make_world(engine, mpi, own, ends_stalls=limits is not None)
    if (path := timeline_path()) is not None:
        _process.world.watch.start_timeline(path)
    if _process.world.size > 1:
        _process.watch_for_failure(_process.world.rank, _process.world.size)
        check_unverified(_process.world)
    return _process.world


def shutdown() -> None:
    """Stop Horovod. Collective. MPI goes on until the process ends, so that `init()` works again."""
    world, _process.world = _process.world, None
    if world is not None:
        world.watch.close()
    horovod().mpi_ops.shutdown()
    if world is not None:
        for attachment in reversed(list(world.attachments.values())):
            attachment.close()
        world.attachments.clear()
        for communicator in (world.cross_comm, world.local_comm, world.comm):
            if communicator is not None:
                communicator.Free()


def end_with(status: int) -> NoReturn:
    """End this process with `status`, without the message of a failure. Collective: all ranks end so."""
    if _process.hooks is not None:
        _process.hooks.remove()
    if _process.world is not None:
        shutdown()
    finish_mpi()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def renew_world() -> None:
    """Have all that the ranks agreed on in this world count as stale, since some of them did not take part."""
    if _process.world is not None:
        _process.generation += 1
        _process.unnamed.clear()
        _process.world = replace(_process.world, generation=_process.generation)


def name_of_unnamed(process_set_id: int) -> str:
    """The name of the next operation over this process set that the user gave none.

    Horovod's own is the number of the handle, and ranks that made different numbers of calls, over process sets or
    before `join()`, would wait for each other's names for ever.
    """
    _process.unnamed[process_set_id] += 1
    return f"unnamed.{_process.unnamed[process_set_id]}"


def is_initialized() -> bool:
    """Whether Horovod is running in this process."""
    return _process.world is not None and bool(horovod().mpi_ops.is_initialized())


def current_world() -> World | None:
    """The world of the running job, or None before `init()` and after `shutdown()`."""
    return _process.world


def require_world() -> World:
    """The world of the running job; raises ValueError with Horovod's words before `init()`."""
    if _process.world is None:
        raise ValueError(NOT_INITIALIZED)
    return _process.world


def _make_world(engine: Any, mpi: Any, own: Any, ends_stalls: bool) -> World:
    ops = engine.mpi_ops
    rank, size, local_rank = ops.rank(), ops.size(), ops.local_rank()
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=ops.local_size(),
        cross_rank=ops.cross_rank(),
        cross_size=ops.cross_size(),
        backend="gloo" if mpi is None else "mpi",
        hostname=socket.gethostname(),
        device=_device(local_rank, size == 1 or bool(ops.nccl_built())),
        threads=1,
        generation=_process.generation,
        comm=own,
        watch=Watch(rank, size, own, mpi, follows_engine=ends_stalls or (own is not None and ops.local_size() < size)),
    )
    if ends_stalls and mpi is None and size > 1:
        world.watch.check_stalls_by(Datagrams(rank, size, lambda item: gather_objects(world, item)))
    if world.comm is not None:
        world = replace(
            world,
            local_comm=world.comm.Split_type(mpi.COMM_TYPE_SHARED, key=rank),
            cross_comm=world.comm.Split(color=local_rank, key=rank),
        )
    cores = usable_cores()
    neighbours = [mask for host, mask in gather_objects(world, (world.hostname, cores)) if host == world.hostname]
    return replace(world, threads=fair_threads(cores, neighbours))


def _check_process_sets(comm: Any, process_sets: Any) -> None:
    """Raise DivergenceError on all ranks where some want dynamic process sets and some do not: Horovod would hang."""
    asked = comm.allgather(repr(process_sets) if process_sets is None or isinstance(process_sets, str) else "a list")
    if len({text == "'dynamic'" for text in asked}) > 1:
        raise DivergenceError(
            f"init: process_sets is {who_has_what(asked)}: every rank must ask for the same (hvdkit train "
            "asks for them with --local-level nodes)"
        )


def _limits_of_stalls(mpi: Any, launch: LaunchInfo) -> StallLimits | None:
    """By what hvdkit's stall check ends this job; None where it does not."""
    limits = stall_limits()
    if launch.size == 1 or limits is None or not limits.shutdown_s:
        return None
    return None if mpi is not None and mpi.Query_thread() < mpi.THREAD_MULTIPLE else limits


def _are_on_one_node(mpi: Any, comm: Any) -> bool:
    node = comm.Split_type(mpi.COMM_TYPE_SHARED)
    is_everyone = bool(node.Get_size() == comm.Get_size())
    node.Free()
    return is_everyone


def _communicator(mpi: Any, comm: Any) -> Any:
    """A communicator of hvdkit's own over the ranks that `init()` was asked for."""
    if comm is None or comm == []:
        return mpi.COMM_WORLD.Dup()
    if isinstance(comm, list):
        rank = mpi.COMM_WORLD.Get_rank()
        if rank not in comm:
            raise ValueError(
                f"init: comm={comm} leaves out this process, rank {rank}; every rank must pass the list of ranks that "
                "it belongs to"
            )
        return mpi.COMM_WORLD.Create_group(mpi.COMM_WORLD.Get_group().Incl(comm))
    if not isinstance(comm, mpi.Comm):
        raise ValueError("Invalid type of argument comm. Expected list of rank integers or mpi4py.MPI.Comm object.")
    return comm.Dup()


def _device(local_rank: int, can_reduce_on_gpu: bool) -> torch.device:
    if can_reduce_on_gpu and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def _finish() -> None:
    if _process.hooks is not None:
        _process.hooks.end_job_on_bad_status()
    if _process.world is not None:
        shutdown()
