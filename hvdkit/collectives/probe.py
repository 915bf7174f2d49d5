"""Measures what the cost model needs, at the first use of a group, in a fraction of a second.

Every algorithm runs with a few message lengths, shortest first. The algorithms of a collective take turns, so that a
slow moment of the machine strikes them alike; each length gets its share of the time that is left, for as many
repetitions as fit. Longer ones are left out, for all algorithms of the collective, when they would not fit (slow
networks, many ranks on few cores), and an algorithm that falls far behind runs no further. Rank 0's numbers are
everyone's, so that all ranks choose alike.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from hvdkit.collectives.algorithms import COLLECTIVES, Algorithms
from hvdkit.collectives.cost import Curve, Parameters, Point, wire_factor
from hvdkit.collectives.group import Group
from hvdkit.collectives.meeting import Call, Meeting
from hvdkit.collectives.reduction import Reduction

SIZES = (256, 8 * 1024, 64 * 1024, 512 * 1024, 4 * 2**20)
_BUDGET_S = 0.4
_MOST_REPEATS = 15
_FAR_BEHIND = 3.0
_WIRE_BYTES = 128 * 1024

Calls = dict[str, Callable[[], None]]


def probe(group: Group, algorithms: Algorithms, meeting: Meeting, budget_s: float = _BUDGET_S) -> Parameters:
    """Measure all algorithms of `group`. Collective; takes about `budget_s` at most."""
    deadline = time.perf_counter() + budget_s
    meeting_s = _seconds(group, lambda: meeting.meet(Call("gather_objects")), repeats=20)
    barrier_s = _seconds(group, group.node.Barrier, repeats=20)
    latency_s = bandwidth = None
    if not group.is_one_node:
        latency_s, bandwidth = _probe_wire(group)
    points: dict[tuple[str, str], list[Point]] = {pair: [] for pair in offered(algorithms)}
    todo = [(nbytes, collective) for nbytes in SIZES for collective in COLLECTIVES]
    for number, (nbytes, collective) in enumerate(todo):
        known = {name: points[kind, name] for kind, name in points if kind == collective}
        names = group.comm.bcast(_worth_probing(known, nbytes, deadline - time.perf_counter()))
        if not names:
            continue
        calls = make_calls(group, algorithms, meeting, collective, names, nbytes)
        started = time.perf_counter()
        first = time_in_turns(group, calls, repeats=1)
        once_s = time.perf_counter() - started
        share_s = (deadline - time.perf_counter()) / (len(todo) - number)
        repeats = group.comm.bcast(min(_MOST_REPEATS, int(share_s / once_s)))
        found = time_in_turns(group, calls, repeats) if repeats > 0 else first
        for name, seconds in found.items():
            points[collective, name].append((nbytes, seconds))
    curves = {}
    for (collective, name), measured in points.items():
        factor = wire_factor(name, len(group.members), group.size) if collective == "all_reduce" else 0.0
        curves[collective, name] = Curve(tuple(measured), factor / bandwidth if bandwidth else 0.0)
    took_s = time.perf_counter() - deadline + budget_s
    mine = Parameters(group.members, meeting_s, barrier_s, latency_s, bandwidth, curves, took_s)
    shared: Parameters = group.comm.bcast(mine)
    return shared


def offered(algorithms: Algorithms) -> list[tuple[str, str]]:
    """The pairs of collective and algorithm that can be chosen: all that work here, but for Horovod's engine."""
    return [(kind, name) for kind in COLLECTIVES for name in algorithms.names(kind) if name != "horovod"]


def _worth_probing(known: dict[str, list[Point]], nbytes: int, left_s: float) -> list[str]:
    """The algorithms to run with `nbytes`, given their points so far: none that is far behind, none if too slow."""
    if any(len(found) < 2 for found in known.values()):
        return list(known)
    expected = {name: Curve(tuple(found)).seconds(nbytes) for name, found in known.items()}
    limit_s = _FAR_BEHIND * min(expected.values())
    names = [name for name in known if expected[name] <= limit_s]
    return names if 2 * sum(expected[name] for name in names) <= left_s else []


def make_calls(
    group: Group, algorithms: Algorithms, meeting: Meeting, collective: str, names: Iterable[str], nbytes: int
) -> Calls:
    """A call of each algorithm with float32 tensors of `nbytes` on each rank, preceded by a meeting as real ones are.

    For all-gather `nbytes` is what each rank brings, for reduce-scatter what it brings and gets 1/p of.
    """
    data = torch.zeros(max(1, nbytes // 4))
    count, reduction = data.numel(), Reduction("sum")
    arguments: tuple[Any, ...]
    if collective == "all_reduce":
        arguments = (data, reduction)
    elif collective == "reduce":
        arguments = (data, 0, reduction)
    elif collective == "broadcast":
        arguments = (data, 0)
    elif collective == "all_gather":
        arguments = (data, torch.zeros(count * group.size), [count] * group.size)
    else:
        counts = [count // group.size + (rank < count % group.size) for rank in range(group.size)]
        arguments = (data, torch.zeros(counts[group.index]), counts, reduction)

    def make(method: Callable[..., None]) -> Callable[[], None]:
        def call() -> None:
            meeting.meet(Call("gather_objects"))
            method(*arguments)

        return call

    return {name: make(algorithms.method(collective, name)) for name in names}


def time_in_turns(group: Group, calls: Calls, repeats: int) -> dict[str, float]:
    """For each call the median over `repeats` of the ranks' mean seconds. Collective.

    The calls take turns, and a barrier precedes each.
    """
    times = np.zeros((repeats, len(calls)))
    for turn in times:
        for place, call in enumerate(calls.values()):
            group.comm.Barrier()
            start = time.perf_counter()
            call()
            turn[place] = time.perf_counter() - start
    group.comm.Allreduce(group.mpi.IN_PLACE, times, group.mpi.SUM)
    return dict(zip(calls, np.median(times / group.size, axis=0).tolist(), strict=True))


def _seconds(group: Group, call: Callable[[], None], repeats: int) -> float:
    call()
    return time_in_turns(group, {"": call}, repeats)[""]


def _probe_wire(group: Group) -> tuple[float, float]:
    """Latency, and what each node sends when all its carrying ranks exchange with the nodes beside it."""
    across: Any = group.across
    places = (0, 0)
    if across is not None:
        places = ((group.node_number + 1) % len(group.members), (group.node_number - 1) % len(group.members))

    def exchange(nbytes: int) -> Callable[[], None]:
        outgoing, incoming = np.zeros(nbytes, dtype=np.uint8), np.zeros(nbytes, dtype=np.uint8)

        def call() -> None:
            if across is not None:
                across.Sendrecv(outgoing, places[0], 0, incoming, places[1], 0)

        return call

    latency_s = _seconds(group, exchange(1), repeats=5)
    long_s = _seconds(group, exchange(_WIRE_BYTES // group.carriers), repeats=3)
    return latency_s, _WIRE_BYTES / max(1e-9, long_s - latency_s)
