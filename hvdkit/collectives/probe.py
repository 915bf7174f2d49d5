"""Measures what the cost model needs, at the first use of a group, in a fraction of a second.

Every algorithm runs with a few message lengths, those that tell most first. The algorithms of a collective take turns,
so that a slow moment of the machine strikes them alike; each length gets its share of the time that is left, for as
many repetitions as fit, of which the fastest counts. Beyond the first two, lengths are left out for all algorithms of
a collective where they would not fit (slow networks, many ranks on few cores). Rank 0's numbers are everyone's, so
that all ranks choose alike.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from hvdkit.collectives.algorithms import COLLECTIVES, Algorithms
from hvdkit.collectives.cost import Curve, Parameters, Point, wire_factor
from hvdkit.collectives.group import Group
from hvdkit.collectives.hierarchical import BLOCK_BYTES
from hvdkit.collectives.meeting import Call, Meeting
from hvdkit.collectives.reduction import Reduction

SIZES = (256, 64 * 1024, 512 * 1024, 8 * 2**20, 8 * 1024)
"""Bytes, in the order in which they are probed."""
_BUDGET_S = 0.4
_SETTLING_SHARE = 0.1
_MOST_REPEATS = 15
_WIRE_BYTES = 128 * 1024


class Calls(NamedTuple):
    """Calls by the names of their algorithms, and the tensor that they reduce or send."""

    data: torch.Tensor
    by_name: dict[str, Callable[[], object]]


def probe(group: Group, algorithms: Algorithms, meeting: Meeting, budget_s: float = _BUDGET_S) -> Parameters:
    """Measure all algorithms of `group`. Collective; takes about `budget_s` at most."""
    deadline = time.perf_counter() + budget_s
    _settle(group, meeting, time.perf_counter() + _SETTLING_SHARE * budget_s)
    meeting_s = _seconds(group, lambda: meeting.meet(Call("gather_objects")), repeats=20)
    barrier_s = _seconds(group, group.node.Barrier, repeats=20)
    latency_s = bandwidth = None
    if not group.is_one_node:
        latency_s, bandwidth = _probe_wire(group)
    points: dict[tuple[str, str], list[Point]] = {pair: [] for pair in offered(algorithms)}
    todo = [(nbytes, collective) for nbytes in SIZES for collective in COLLECTIVES]
    for number, (nbytes, collective) in enumerate(todo):
        known = {name: points[kind, name] for kind, name in points if kind == collective}
        left_s = deadline - time.perf_counter()
        if not group.comm.bcast(_fits(known, nbytes, left_s)):
            continue
        calls = make_calls(group, algorithms, meeting, collective, known, nbytes)
        share_s = left_s / (len(todo) - number)
        for name, seconds in _fastest(group, calls, share_s).items():
            points[collective, name].append((nbytes, seconds))
    curves = {}
    for (collective, name), measured in points.items():
        factor = wire_factor(collective, name, len(group.members), group.size)
        # Of the other collectives every rank's part is a block, so that what was probed was a pipeline.
        is_one_block = collective == "all_reduce" and max(measured)[0] <= BLOCK_BYTES
        is_pipelined = factor > 0 and name == "hierarchical" and is_one_block
        curves[collective, name] = Curve(_rising(measured), factor / bandwidth if bandwidth else 0.0, is_pipelined)
    took_s = time.perf_counter() - deadline + budget_s
    mine = Parameters(group.members, meeting_s, barrier_s, latency_s, bandwidth, curves, took_s)
    shared: Parameters = group.comm.bcast(mine)
    return shared


def offered(algorithms: Algorithms) -> list[tuple[str, str]]:
    """The pairs of collective and algorithm that can be chosen: all that work here, but for Horovod's engine."""
    return [(kind, name) for kind in COLLECTIVES for name in algorithms.names(kind) if name != "horovod"]


def _settle(group: Group, meeting: Meeting, deadline: float) -> None:
    """Communicate until `deadline`: the kernel takes a while to give ranks that begin to work cores of their own."""
    while group.comm.bcast(time.perf_counter() < deadline):
        meeting.meet(Call("gather_objects"))


def _fits(known: dict[str, list[Point]], nbytes: int, left_s: float) -> bool:
    """Whether two calls of each algorithm with `nbytes` fit, by their points so far; the first two lengths always."""
    if any(len(found) < 2 for found in known.values()):
        return True
    return 2 * sum(Curve(_rising(found)).seconds(nbytes) for found in known.values()) <= left_s


def _rising(points: list[Point]) -> tuple[Point, ...]:
    """The points with rising bytes. Where a shorter message took longer than a longer one, the machine was busy."""
    least, made = float("inf"), []
    for nbytes, seconds in sorted(points, reverse=True):
        least = min(least, seconds)
        made.append((nbytes, least))
    return tuple(reversed(made))


def _fastest(group: Group, calls: Calls, share_s: float) -> dict[str, float]:
    """For each call the least of the ranks' mean seconds, in about `share_s` with a turn to warm up. Collective."""
    deadline = time.perf_counter() + share_s
    _one_turn(group, calls)
    turns = [_one_turn(group, calls)]
    while group.comm.bcast(len(turns) < _MOST_REPEATS and time.perf_counter() < deadline):
        turns.append(_one_turn(group, calls))
    return dict(zip(calls.by_name, _mean_of_ranks(group, turns).min(axis=0).tolist(), strict=True))


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

    return Calls(data, {name: make(algorithms.method(collective, name)) for name in names})


def time_in_turns(group: Group, calls: Calls, repeats: int) -> dict[str, float]:
    """For each call the median over `repeats` of the ranks' mean seconds. Collective.

    The calls take turns, and a barrier precedes each.
    """
    times = _mean_of_ranks(group, [_one_turn(group, calls) for _ in range(repeats)])
    return dict(zip(calls.by_name, np.median(times, axis=0).tolist(), strict=True))


def _one_turn(group: Group, calls: Calls) -> list[float]:
    """This rank's seconds for each call.

    Before each the rank writes its tensor anew, as a backward pass does: otherwise one algorithm would pay for cache
    lines that another one left with the other ranks.
    """
    seconds = []
    for call in calls.by_name.values():
        calls.data.zero_()
        group.comm.Barrier()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _mean_of_ranks(group: Group, turns: list[list[float]]) -> Any:
    times = np.array(turns)
    group.comm.Allreduce(group.mpi.IN_PLACE, times, group.mpi.SUM)
    return times / group.size


def _seconds(group: Group, call: Callable[[], object], repeats: int) -> float:
    call()
    calls = Calls(torch.zeros(1), {"": call})
    return float(_mean_of_ranks(group, [_one_turn(group, calls) for _ in range(repeats)]).min())


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
