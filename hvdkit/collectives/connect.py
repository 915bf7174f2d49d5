"""The direct collectives of a world, made once for each set of ranks and kept as long as the world."""

from typing import Any

from hvdkit.collectives.algorithms import STRATEGIES, Algorithms
from hvdkit.collectives.choice import Choice, choose_all
from hvdkit.collectives.cost import Parameters
from hvdkit.collectives.direct import DirectCollectives
from hvdkit.collectives.group import Group
from hvdkit.collectives.horovod_engine import HorovodAlgorithm, HorovodEngine
from hvdkit.collectives.meeting import Meeting
from hvdkit.collectives.probe import offered, probe
from hvdkit.collectives.threads import limit_threads, restore_threads
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
    key = _key(process_set)
    found: DirectCollectives | None = world.attachments.get(key)
    if found is None:
        made = _make(world, process_set)
        _choose_by_probe(made)
        found = world.attachments[key] = made
    return found


def saved_choice(world: World) -> dict[str, Any] | None:
    """What the direct collectives over all ranks choose algorithms by, as JSON; None where nothing was probed."""
    found: DirectCollectives | None = world.attachments.get(_key(None))
    choice = found.algorithms.choose if found is not None else None
    return choice.parameters.to_json() if isinstance(choice, Choice) else None


def choose_as_saved(world: World, saved: dict[str, Any] | None) -> bool:
    """Let the direct collectives over all ranks choose by `saved`, from `saved_choice`, of which rank 0's counts.

    Returns whether it holds for these ranks, nodes and algorithms; otherwise they choose by a probe. Collective, before
    the first call of theirs. Raises ValueError where `why_no_direct` has a reason.
    """
    found: DirectCollectives | None = world.attachments.get(_key(None))
    direct = found or _make(world, None)
    parameters: Parameters | None = direct.group.comm.bcast(_fitting(direct, saved))
    if parameters is not None:
        direct.algorithms.choose = choose_all(parameters)
    elif found is None:
        _choose_by_probe(direct)
    world.attachments[_key(None)] = direct
    return parameters is not None


def _key(process_set: Any) -> tuple[Any, ...]:
    # Horovod gives the number of a process set that was removed to another one.
    return ("direct", None if process_set is None else (process_set.process_set_id, tuple(process_set.ranks)))


def _fitting(direct: DirectCollectives, saved: dict[str, Any] | None) -> Parameters | None:
    """The parameters that `saved` holds, if they hold for `direct`."""
    try:
        parameters = Parameters.from_json(saved or {})
    except (AttributeError, ValueError):  # nothing was probed, or by another hvdkit
        return None
    return parameters if parameters.fits(direct.group.members, offered(direct.algorithms)) else None


def _choose_by_probe(direct: DirectCollectives) -> None:
    if direct.size > 1:
        asked = limit_threads(direct.threads)
        try:
            direct.algorithms.choose = choose_all(probe(direct.group, direct.algorithms, direct.meeting))
        finally:
            restore_threads(asked)


def _make(world: World, process_set: Any) -> DirectCollectives:
    if why := why_no_direct(world):
        raise ValueError(f'hvdkit\'s own algorithms need MPI: {why}; use strategy="horovod"')
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
    return DirectCollectives(group, algorithms, meeting, world.watch, threads=world.threads)
