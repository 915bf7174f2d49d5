"""The plan: every stage with its memory and time, what fits, what is best, and how it scales."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from hvdkit.plan.footprint import Footprint
from hvdkit.plan.machine import Machine
from hvdkit.plan.memory import STAGES, Memory, plan_memory
from hvdkit.plan.network import Network, Ranks
from hvdkit.plan.timing import Time, Timing

MOST_RANKS = 1024
ASSUMED_LINK = 10e9 / 8
"""Bytes per second."""
_ABOUT_AS_QUICK = 1.02


@dataclass(frozen=True)
class StagePlan:
    """A sharding stage."""

    stage: int
    shared_weights: bool
    memory: Memory
    time: Time
    by_strategy: dict[str, float]
    """Seconds of communication, by algorithm."""
    bytes_sent: float
    """By a rank, in a step."""
    bytes_out: float
    """By a host to other hosts, in a step."""
    fits: bool


@dataclass(frozen=True)
class ScalingPoint:
    """Weak scaling: every rank computes as much as with one rank."""

    ranks: Ranks
    step_s: dict[int, float]
    """By stage."""
    efficiency: dict[int, float]
    """Of a step of one rank alone that computes as fast, the share."""


@dataclass(frozen=True)
class Plan:
    """All of it."""

    footprint: Footprint
    machine: Machine
    ranks: Ranks
    tokens_per_step: int
    """Over all ranks."""
    is_link_assumed: bool
    """Whether nothing is known of what joins hosts, so that scaling beyond one is for an assumed link."""
    memory_per_rank: float | None
    """As given; None for the host's memory, shared."""
    stages: list[StagePlan]
    scaling: list[ScalingPoint]

    @property
    def best(self) -> StagePlan | None:
        """The quickest stage that fits; of those that are about as quick, the lowest, which does least."""
        fitting = [plan for plan in self.stages if plan.fits]
        least_s = min((plan.time.step for plan in fitting), default=0.0)
        return next((plan for plan in fitting if plan.time.step <= _ABOUT_AS_QUICK * least_s), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values: bytes and seconds."""
        return {
            "footprint": asdict(self.footprint),
            "machine": self.machine.to_json(),
            "ranks": self.ranks.size,
            "ranks_per_host": self.ranks.per_host,
            "tokens_per_step": self.tokens_per_step,
            "stages": [
                {**asdict(plan), "step_s": plan.time.step, "peak_bytes": plan.memory.peak} for plan in self.stages
            ],
            "best": self.best.stage if self.best else None,
            "scaling": [
                {"ranks": point.ranks.size, "hosts": point.ranks.hosts, "step_s": point.step_s,
                 "efficiency": point.efficiency}
                for point in self.scaling
            ],
        }  # fmt: skip


def make_plan(
    footprint: Footprint,
    network: Network,
    ranks: Ranks,
    *,
    tokens_per_step: int,
    accumulate: int = 1,
    memory_per_rank: float | None = None,
    per_host: int | None = None,
) -> Plan:
    """Plan a run of `ranks`, and how it scales on hosts of `per_host` (default: those of `ranks`)."""
    machine = network.machine
    timing = Timing(footprint, network, accumulate)
    is_link_assumed = network.wire_bytes_per_s is None
    wider = replace(timing, network=replace(network, link=ASSUMED_LINK)) if is_link_assumed else timing
    return Plan(
        footprint=footprint,
        machine=machine,
        ranks=ranks,
        tokens_per_step=tokens_per_step,
        is_link_assumed=is_link_assumed,
        memory_per_rank=memory_per_rank,
        stages=[_plan_stage(stage, timing, ranks, memory_per_rank) for stage in STAGES],
        scaling=_scale(wider, per_host or ranks.per_host, ranks.size),
    )


def _plan_stage(stage: int, timing: Timing, ranks: Ranks, memory_per_rank: float | None) -> StagePlan:
    network, footprint = timing.network, timing.footprint
    machine = network.machine
    shares = _shares(stage, network, ranks)
    memory = plan_memory(
        footprint,
        stage,
        ranks.size,
        process_bytes=0 if network.inside is not None else machine.process_bytes,  # which is not on a GPU
        shared_weights=shares,
        runs_ahead=machine.has_free_core or ranks.hosts > 1,
        accumulates=timing.accumulate > 1,
    )
    names = [
        name for name in network.algorithms(ranks)
        if stage == 0 or name in set(network.algorithms(ranks, "reduce_scatter")) & set(
            network.algorithms(ranks, "all_gather"))
    ]  # fmt: skip
    return StagePlan(
        stage=stage,
        shared_weights=shares,
        memory=memory,
        time=timing.step(stage, ranks, shared_weights=shares),
        by_strategy={
            name: timing.step(stage, ranks, shared_weights=shares, strategy=name).communication for name in names
        },
        bytes_sent=timing.bytes_sent(stage, ranks, shared_weights=shares),
        bytes_out=timing.bytes_out(stage, ranks, "hierarchical" if network.inside is None else "horovod"),
        fits=_fits(memory, ranks, network, memory_per_rank),
    )


def _fits(memory: Memory, ranks: Ranks, network: Network, memory_per_rank: float | None) -> bool:
    """Whether training and saving do: in each device's memory, or in that which the ranks of a host share."""
    if network.inside is not None and memory_per_rank is not None:
        return memory.peak <= memory_per_rank  # what is assembled for saving is on the host
    there = network.machine.memory if memory_per_rank is None else memory_per_rank * ranks.per_host
    others = (ranks.per_host - 1) * (memory.state.parameters + memory.state.optimizer + memory.process)
    return max(ranks.per_host * memory.peak, others + memory.saving) <= there


def _shares(stage: int, network: Network, ranks: Ranks) -> bool:
    """Whether `hvdkit train` keeps one copy of the weights for all ranks."""
    return stage in (1, 2) and ranks.hosts == 1 and ranks.size > 1 and network.inside is None


def _scale(timing: Timing, per_host: int, planned: int) -> list[ScalingPoint]:
    """1 to MOST_RANKS ranks in powers of two, the planned ranks and those of a host, on hosts of `per_host`."""
    alone = timing.step(0, Ranks(1, 1)).step
    counts = {2**power for power in range(MOST_RANKS.bit_length())} | {per_host, planned}
    places = {Ranks(1, count) if count <= per_host else Ranks(-(-count // per_host), per_host) for count in counts}
    points = []
    for ranks in sorted(places, key=lambda place: place.size):
        steps = {
            stage: timing.step(stage, ranks, shared_weights=_shares(stage, timing.network, ranks)).step
            for stage in STAGES
        }
        points.append(ScalingPoint(ranks, steps, {stage: alone / step for stage, step in steps.items()}))
    return points
