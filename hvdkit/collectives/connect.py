"""The direct collectives of a world, made once for each set of ranks and kept as long as the world."""

from typing import Any

from hvdkit.collectives.algorithms import STRATEGIES, Algorithms
from hvdkit.collectives.choice import choose_all
from hvdkit.collectives.direct import DirectCollectives
from hvdkit.collectives.group import Group
from hvdkit.collectives.horovod_engine import HorovodAlgorithm, HorovodEngine
from hvdkit.collectives.meeting import Meeting
from hvdkit.collectives.probe import probe
from hvdkit.runtime.mpi import load_mpi
from hvdkit.runtime.watch import warn_of_ignored_variables
from hvdkit.runtime.world import World


def why_no_direct(world: World) -> str | None:
    """Why hvdkit's own algorithms cannot run in this world, in words; None where they can."""
    if world.comm is None:
        return "this job was launched with Gloo, without MPI"
    mpi = load_mpi()
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        return "the MPI library was started without full thread support (MPI_THREAD_MULTIPLE)"
    return None


def direct_collectives(world: World, process_set: Any = None) -> DirectCollectives:
    """The direct collectives over all ranks, or those of `process_set`. Collective over them at the first call.

    Raises ValueError where `why_no_direct` has a reason.
    """
    # Horovod gives the number of a process set that was removed to another one.
    key = ("direct", None if process_set is None else (process_set.process_set_id, tuple(process_set.ranks)))
    found: DirectCollectives | None = world.attachments.get(key)
    if found is None:
        if why := why_no_direct(world):
            raise ValueError(f'hvdkit\'s own algorithms need MPI: {why}; use strategy="horovod"')
        found = world.attachments[key] = _make(world, process_set)
    return found


def _make(world: World, process_set: Any) -> DirectCollectives:
    comm: Any = world.comm
    if process_set is not None:
        comm = comm.Create_group(comm.Get_group().Incl(list(process_set.ranks)))
    group = Group(comm)
    if process_set is not None:
        group.world_ranks = tuple(process_set.ranks)
        comm.Free()
    warn_of_ignored_variables(world.rank)
    algorithms = Algorithms(group, HorovodAlgorithm(HorovodEngine(world, process_set)))
    meeting = Meeting(group.mpi, group.comm, STRATEGIES)
    if group.size > 1:
        choice = choose_all(probe(group, algorithms, meeting))
        algorithms.choose = choice
    return DirectCollectives(group, algorithms, meeting, world.watch)
