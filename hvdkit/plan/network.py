"""How long a collective takes over any number of hosts and ranks: measured curves, and the wire's share of them.

Where the ranks that are planned lie as those that measured, the curves of the cost model are the answer. Otherwise:

  one host      the measured curve, times (p-1)/p over the same of the ranks that measured
  more hosts    the larger of the host's part (its ranks' collective of the same algorithm) and the wire's
                (`wire_factor` x bytes / link), since blocks of both run at the same time; and the wire's latencies

Given numbers win: `link` between hosts, `inside` between the devices of a host, which then all use Horovod's ring.
More ranks on a host than have measured move more bytes at the same speed.
"""

import functools
import math
from dataclasses import dataclass

from hvdkit.collectives.choice import Choice, choose_all, thrifty_one
from hvdkit.collectives.cost import wire_factor
from hvdkit.plan.machine import Machine

ASSUMED_LATENCY_S = 50e-6
"""Of a message between hosts, where none was measured."""
_BETWEEN_HOSTS = ("hierarchical", "ring", "tree")
_INSIDE = "shared_memory"


@dataclass(frozen=True)
class Ranks:
    """Where the ranks are: the same number on each host."""

    hosts: int
    per_host: int

    @property
    def size(self) -> int:
        """All."""
        return self.hosts * self.per_host


@dataclass(frozen=True)
class Network:
    """What joins ranks; bandwidths in bytes per second, each way."""

    machine: Machine
    link: float | None = None
    """Of a host; None for what was measured."""
    inside: float | None = None
    """Of a device to others of its host; None for the measured collectives of a host."""

    @property
    def wire_bytes_per_s(self) -> float | None:
        """Between hosts, given or measured."""
        if self.link is not None:
            return self.link
        parameters = self.machine.collectives
        return parameters.wire_bytes_per_s if parameters else None

    def algorithms(self, ranks: Ranks, collective: str = "all_reduce") -> list[str]:
        """Those whose times can be told."""
        if self.inside is not None:
            return ["horovod"]
        parameters = self.machine.collectives
        measured = [name for kind, name in parameters.curves if kind == collective] if parameters else []
        if self._is_as_measured(ranks):
            return measured
        if ranks.hosts == 1:
            return [name for name in measured if name != "hierarchical"] or [_INSIDE]
        return [name for name in _BETWEEN_HOSTS if name != "tree" or collective == "all_reduce"]

    def chosen(self, collective: str, nbytes: float, ranks: Ranks) -> str:
        """The algorithm that strategy="auto" means there."""
        if self._is_as_measured(ranks):
            one = nbytes / ranks.size if collective == "all_gather" else nbytes
            return self._choice(collective, math.ceil(one))
        costs = {name: self.seconds(collective, name, nbytes, ranks) for name in self.algorithms(ranks, collective)}
        return thrifty_one(costs, nbytes) or min(costs, key=costs.__getitem__)

    def seconds(self, collective: str, algorithm: str, nbytes: float, ranks: Ranks) -> float:
        """Of `collective` with a message of `nbytes` on each rank (for all-gather: of all together)."""
        if ranks.size == 1:
            return 0.0
        if self._is_as_measured(ranks):
            return self._measured(collective, algorithm, nbytes, ranks)
        if self.machine.hosts > 1 and self.link is None and ranks.hosts > 1 and self.inside is None:
            there = Ranks(self.machine.hosts, self.machine.ranks_per_host)
            growth = _wire_share(collective, algorithm, ranks) / _wire_share(collective, algorithm, there)
            more = _messages(collective, algorithm, ranks) - _messages(collective, algorithm, there)
            return self._measured(collective, algorithm, nbytes, there) * growth + more * self._latency_s
        host_s = self.busy_seconds(collective, algorithm, nbytes, ranks)
        if ranks.hosts == 1:
            return host_s
        wire = self.wire_bytes_per_s
        assert wire is not None, "options say that several hosts need a link"
        wire_s = _wire_share(collective, algorithm, ranks) * nbytes / wire
        return max(host_s, wire_s) + _messages(collective, algorithm, ranks) * self._latency_s

    def bytes_out(self, collective: str, algorithm: str, nbytes: float, ranks: Ranks) -> float:
        """Bytes that the busiest host sends."""
        return _wire_share(collective, algorithm, ranks) * nbytes

    @functools.cached_property
    def _choice(self) -> Choice:
        """Of the ranks that measured."""
        assert self.machine.collectives is not None
        return choose_all(self.machine.collectives)

    @property
    def _latency_s(self) -> float:
        parameters = self.machine.collectives
        measured = parameters.wire_latency_s if parameters else None
        return ASSUMED_LATENCY_S if measured is None else measured

    def _is_as_measured(self, ranks: Ranks) -> bool:
        if self.inside is not None or (self.link is not None and ranks.hosts > 1):
            return False
        is_there = (ranks.hosts, ranks.per_host) == (self.machine.hosts, self.machine.ranks_per_host)
        return is_there and self.machine.collectives is not None

    def _measured(self, collective: str, algorithm: str, nbytes: float, ranks: Ranks) -> float:
        parameters = self.machine.collectives
        assert parameters is not None
        one = nbytes / ranks.size if collective == "all_gather" else nbytes
        return parameters.cost(collective, algorithm, math.ceil(one))

    def busy_seconds(self, collective: str, algorithm: str, nbytes: float, ranks: Ranks) -> float:
        """The part that is done within a host, which keeps its ranks busy."""
        if ranks.per_host == 1:
            return 0.0
        share = _host_share(collective, ranks.per_host)
        if self.inside is not None:
            return share * nbytes / self.inside
        machine, parameters = self.machine, self.machine.collectives
        if parameters is None or machine.ranks_per_host == 1 or machine.hosts > 1:
            return 2 * share * nbytes * machine.copy_s
        name = algorithm if (collective, algorithm) in parameters.curves else _INSIDE
        if (collective, name) not in parameters.curves:
            name = min(kind[1] for kind in parameters.curves if kind[0] == collective)
        here = Ranks(1, machine.ranks_per_host)
        return self._measured(collective, name, nbytes, here) * share / _host_share(collective, here.per_host)


def _host_share(collective: str, per_host: int) -> float:
    """Of a message's bytes, what a rank sends within its host."""
    return (2.0 if collective == "all_reduce" else 1.0) * (per_host - 1) / per_host


def _wire_share(collective: str, algorithm: str, ranks: Ranks) -> float:
    """How many times the bytes of a message (all-gather: of all ranks) leave the busiest host."""
    if ranks.hosts == 1:
        return 0.0
    name = {"horovod": "ring"}.get(algorithm, algorithm if algorithm in _BETWEEN_HOSTS else "hierarchical")
    factor = wire_factor(collective, name, ranks.hosts, ranks.size)
    return factor / ranks.size if collective == "all_gather" else factor


def _messages(collective: str, algorithm: str, ranks: Ranks) -> int:
    """How many messages follow one another between hosts: around a ring, or up a tree (and back down)."""
    there_and_back = 2 if collective == "all_reduce" else 1
    if algorithm == "tree" or (algorithm == "hierarchical" and collective != "all_reduce"):
        return there_and_back * math.ceil(math.log2(ranks.hosts))
    return there_and_back * ((ranks.hosts if algorithm == "hierarchical" else ranks.size) - 1)
