"""Measures what the cost model needs, at the first use of a group, in a fraction of a second.

Every algorithm runs with a few message lengths, shortest first; longer ones are left out when the time is spent (slow
networks, many ranks on few cores). Of the repetitions the fastest counts, over ranks the slowest. Rank 0's numbers are
everyone's, so that all ranks choose alike.
"""

import time
from collections.abc import Callable
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
_REPEATS = 3
_WIRE_BYTES = 128 * 1024


def probe(group: Group, algorithms: Algorithms, meeting: Meeting, budget_s: float = _BUDGET_S) -> Parameters:
    """Measure all algorithms of `group`. Collective; takes about `budget_s` at most."""
    started = time.perf_counter()
    timer = _Timer(group)
    meeting_s = timer.seconds(lambda: meeting.meet(Call("gather_objects")), repeats=20)
    barrier_s = timer.seconds(group.node.Barrier, repeats=20)
    latency_s = bandwidth = None
    if not group.is_one_node:
        latency_s, bandwidth = _probe_wire(group, timer)
    points: dict[tuple[str, str], list[Point]] = {}
    for nbytes in SIZES:
        for collective in COLLECTIVES:
            for name in algorithms.names(collective):
                if name == "horovod":
                    continue
                spent = time.perf_counter() - started
                if points.get((collective, name)) and group.comm.bcast(spent > budget_s):
                    continue
                call = make_call(group, algorithms, collective, name, nbytes)
                points.setdefault((collective, name), []).append((nbytes, meeting_s + timer.seconds(call, _REPEATS)))
    curves = {}
    for (collective, name), found in points.items():
        factor = wire_factor(name, len(group.members), group.size) if collective == "all_reduce" else 0.0
        curves[collective, name] = Curve(tuple(found), factor / bandwidth if bandwidth else 0.0)
    mine = Parameters(group.members, meeting_s, barrier_s, latency_s, bandwidth, curves)
    shared: Parameters = group.comm.bcast(mine)
    return shared


def make_call(
    group: Group, algorithms: Algorithms, collective: str, name: str, nbytes: int
) -> Callable[[], None]:  # fmt: skip
    """A call of algorithm `name` with `nbytes` of float32 (all ranks' together for all-gather)."""
    method = algorithms.method(collective, name)
    count = max(1, nbytes // 4)
    data = torch.zeros(count)
    if collective == "all_reduce":
        return lambda: method(data, Reduction("sum"))
    if collective == "reduce":
        return lambda: method(data, 0, Reduction("sum"))
    if collective == "broadcast":
        return lambda: method(data, 0)
    counts = [count // group.size + (rank < count % group.size) for rank in range(group.size)]
    part = torch.zeros(counts[group.index])
    if collective == "all_gather":
        return lambda: method(part, data, counts)
    return lambda: method(data, part, counts, Reduction("sum"))


def _probe_wire(group: Group, timer: "_Timer") -> tuple[float, float]:
    """Latency, and what each node sends when all its carrying ranks exchange with the nodes beside it."""
    across: Any = group.across
    if across is None:
        across, places = None, (0, 0)
    else:
        places = ((group.node_number + 1) % len(group.members), (group.node_number - 1) % len(group.members))

    def exchange(nbytes: int) -> Callable[[], None]:
        outgoing, incoming = np.zeros(nbytes, dtype=np.uint8), np.zeros(nbytes, dtype=np.uint8)

        def call() -> None:
            if across is not None:
                across.Sendrecv(outgoing, places[0], 0, incoming, places[1], 0)

        return call

    latency_s = timer.seconds(exchange(1), repeats=5)
    long_s = timer.seconds(exchange(_WIRE_BYTES // group.carriers), repeats=2)
    return latency_s, _WIRE_BYTES / max(1e-9, long_s - latency_s)


class _Timer:
    def __init__(self, group: Group) -> None:
        self._group = group

    def seconds(self, call: Callable[[], None], repeats: int) -> float:
        """The fastest of `repeats` calls, by the slowest rank; the same on all ranks. Collective."""
        call()
        best = float("inf")
        for _ in range(repeats):
            self._group.comm.Barrier()
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        slowest: float = self._group.comm.allreduce(best, op=self._group.mpi.MAX)
        return slowest
