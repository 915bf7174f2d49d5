"""Predicted seconds and bytes, against arithmetic on round numbers."""

from dataclasses import replace

import pytest

from hvdkit.collectives.cost import Curve, Parameters
from hvdkit.plan.footprint import Footprint
from hvdkit.plan.machine import Machine
from hvdkit.plan.memory import plan_memory
from hvdkit.plan.network import ASSUMED_LATENCY_S, Network, Ranks
from hvdkit.plan.plan import make_plan
from hvdkit.plan.timing import Timing

MB, GB = 10**6, 10**9
LINK = 1e8
GATHERS = 2 - (100 + 30) / 400
"""Of all parameters at stage 3: those outside the layers, and the last layer, once."""
HOST = Ranks(1, 2)
HOSTS = Ranks(2, 2)


def _line(s_per_byte: float) -> Curve:
    return Curve(((0, 0.0), (1, s_per_byte), (GB, GB * s_per_byte)))


PARAMETERS = Parameters(
    nodes=((0, 1),),
    meeting_s=0.0,
    barrier_s=0.0,
    curves={
        ("all_reduce", "shared_memory"): _line(1e-9),
        ("all_reduce", "ring"): _line(3e-9),
        ("reduce_scatter", "shared_memory"): _line(5e-10),
        ("all_gather", "shared_memory"): _line(1e-9),  # for each rank's part
    },
)
MACHINE = Machine(
    hosts=1, ranks_per_host=2, threads=1, cores=2, has_free_core=False, flops_per_s=1e9, source="made up",
    optimizer_s=1e-9, copy_s=1e-10, process_bytes=100 * MB, memory=10 * GB, collectives=PARAMETERS,
)  # fmt: skip
FOOTPRINT = Footprint(
    name="made up", parameters=100 * MB, frozen=0, itemsize=4, flops=3e9, activations=50 * MB, packed=0,
    message_bytes=(200 * MB, 200 * MB), flat_bytes=(200 * MB, 200 * MB), root=100 * MB, layer=30 * MB, layers=10,
)  # fmt: skip


def test_as_measured() -> None:
    network = Network(MACHINE)
    assert network.seconds("all_reduce", "shared_memory", 200 * MB, HOST) == pytest.approx(0.2)
    assert network.seconds("all_gather", "shared_memory", 200 * MB, HOST) == pytest.approx(0.1)
    assert network.chosen("all_reduce", 200 * MB, HOST) == "shared_memory"
    assert network.algorithms(HOST) == ["shared_memory", "ring"]


def test_more_ranks_on_a_host_move_more() -> None:
    # (p-1)/p: 3/4 in place of 1/2.
    assert Network(MACHINE).seconds("all_reduce", "ring", 200 * MB, Ranks(1, 4)) == pytest.approx(0.6 * 1.5)
    assert Network(MACHINE).seconds("all_reduce", "ring", 200 * MB, Ranks(1, 1)) == 0


def test_the_wire() -> None:
    network = Network(MACHINE, link=LINK)
    messages = 2 * ASSUMED_LATENCY_S  # there and back; half of that, where nothing comes back
    # 2(h-1)/h of the bytes for two hosts, once per node; every rank of a ring; both ways of a tree's level.
    assert network.seconds("all_reduce", "hierarchical", 200 * MB, HOSTS) == pytest.approx(2.0 + messages)
    assert network.seconds("all_reduce", "ring", 200 * MB, HOSTS) == pytest.approx(3.0 + 3 * messages)
    assert network.seconds("all_reduce", "tree", 200 * MB, HOSTS) == pytest.approx(4.0 + messages)
    assert network.seconds("reduce_scatter", "hierarchical", 200 * MB, HOSTS) == pytest.approx(1.0 + messages / 2)
    assert network.seconds("all_gather", "hierarchical", 200 * MB, HOSTS) == pytest.approx(1.0 + messages / 2)
    assert network.bytes_out("all_reduce", "hierarchical", 200 * MB, HOSTS) == 200 * MB
    # A wire that is faster than the host's memory leaves the host's part.
    fast = Network(MACHINE, link=1e12)
    assert fast.seconds("all_reduce", "hierarchical", 200 * MB, HOSTS) == pytest.approx(0.2 + messages)


def test_devices_that_are_joined() -> None:
    network = Network(MACHINE, link=LINK, inside=1e10)
    assert network.algorithms(HOSTS) == ["horovod"]
    assert network.seconds("all_reduce", "horovod", 200 * MB, HOST) == pytest.approx(200e6 / 1e10)


def test_measured_on_hosts_and_planned_for_more() -> None:
    curves = {("all_reduce", "hierarchical"): _line(1e-8)}
    measured = replace(PARAMETERS, nodes=((0, 1), (2, 3)), curves=curves, wire_latency_s=1e-4, wire_bytes_per_s=LINK)
    network = Network(replace(MACHINE, hosts=2, collectives=measured))
    assert network.seconds("all_reduce", "hierarchical", 200 * MB, HOSTS) == pytest.approx(2.0)
    assert network.seconds("all_reduce", "hierarchical", 200 * MB, Ranks(4, 2)) == pytest.approx(2.0 * 1.5 + 4e-4)


def test_a_step_on_one_host() -> None:
    timing = Timing(FOOTPRINT, Network(MACHINE))
    whole = timing.step(0, HOST)
    assert (whole.compute, whole.optimizer) == pytest.approx((3.0, 0.1))
    assert whole.communication == whole.exposed == pytest.approx(0.4)
    first, shared, third = timing.step(1, HOST), timing.step(1, HOST, shared_weights=True), timing.step(3, HOST)
    assert first.optimizer == pytest.approx(0.05)
    assert (first.exposed, shared.exposed, third.exposed) == pytest.approx((0.2 + 0.2, 0.2, 0.2 + GATHERS * 0.2))
    assert Timing(FOOTPRINT, Network(MACHINE), accumulate=2).step(3, HOST).exposed == pytest.approx(
        0.2 + 2 * GATHERS * 0.2
    )
    with pytest.raises(KeyError):
        timing.step(0, HOST, strategy="tree")


def test_what_backward_hides() -> None:
    # 4 s of wire beside 2 s of backward; the last quarter of the gradients can never be hidden.
    free = replace(MACHINE, has_free_core=True)
    slow = Timing(FOOTPRINT, Network(free, link=LINK)).step(0, HOSTS)
    assert slow.communication == pytest.approx(4.0, abs=1e-3)
    assert slow.exposed == pytest.approx(2.0, abs=1e-3)
    # Without a free core a third of it hides.
    assert Timing(FOOTPRINT, Network(MACHINE, link=LINK)).step(0, HOSTS).exposed == pytest.approx(4 - 2 / 3, abs=1e-3)
    fast = Timing(FOOTPRINT, Network(free, link=4 * LINK)).step(0, HOSTS)
    assert fast.exposed == pytest.approx(0.25, abs=1e-3)
    # Without a free core what the ranks of a host do is not hidden: 0.4 s by their measured collective.
    busy = Timing(FOOTPRINT, Network(MACHINE, link=40 * LINK)).step(0, HOSTS)
    assert busy.exposed == pytest.approx(0.4, abs=1e-3)
    assert Timing(FOOTPRINT, Network(MACHINE, link=4 * LINK)).step(1, HOSTS).exposed == pytest.approx(1.0, abs=1e-3)


def test_bytes() -> None:
    timing = Timing(FOOTPRINT, Network(MACHINE, link=LINK))
    assert [timing.bytes_sent(stage, HOSTS) for stage in (0, 1, 2, 3)] == pytest.approx(
        [600 * MB] * 3 + [300 * MB * (1 + GATHERS)]
    )
    assert timing.bytes_sent(1, HOST, shared_weights=True) == 200 * MB
    assert [timing.bytes_out(stage, HOSTS) for stage in (0, 1, 3)] == pytest.approx(
        [400 * MB] * 2 + [200 * MB * (1 + GATHERS)]
    )


def test_memory_by_the_formulas() -> None:
    """With d = 400 MB of parameters on 4 ranks: 4d, 2d + 2d/4, d + 3d/4, 4d/4."""
    states = [plan_memory(FOOTPRINT, stage, 4, process_bytes=0).state.total for stage in (0, 1, 2, 3)]
    assert states == [1600 * MB, 1000 * MB, 700 * MB, 400 * MB]
    third = plan_memory(FOOTPRINT, 3, 4, process_bytes=100 * MB, runs_ahead=True)
    assert third.buffers == pytest.approx((100 + 2 * 30) * MB * 0.75 + 30 * MB)
    assert third.peak == pytest.approx(400 * MB + 50 * MB + third.buffers + 100 * MB)
    assert third.saving == pytest.approx((100 + 200 + 800 + 300 + 100) * MB)
    assert plan_memory(FOOTPRINT, 3, 1, process_bytes=0).state.total == 1600 * MB
    gathering = plan_memory(FOOTPRINT, 3, 4, process_bytes=0, accumulates=True)
    assert (gathering.state.gradients, gathering.buffers) == (400 * MB, 300 * MB)


def test_the_best_is_the_quickest_that_fits() -> None:
    def best(memory: float) -> int | None:
        plan = make_plan(FOOTPRINT, Network(MACHINE, link=LINK), HOSTS, tokens_per_step=1, memory_per_rank=memory)
        return plan.best.stage if plan.best else None

    assert best(4 * GB) == 0
    assert best(2 * GB) == 0
    assert best(1.5 * GB) == 2  # 3.3 s of communication are left of it, 4.4 of stage 3
    assert best(0.1 * GB) is None


def test_scaling_reaches_1024_ranks_and_starts_at_1() -> None:
    plan = make_plan(FOOTPRINT, Network(MACHINE, link=LINK), HOSTS, tokens_per_step=1)
    assert [point.ranks.size for point in plan.scaling] == [2**k for k in range(11)]
    odd = make_plan(FOOTPRINT, Network(MACHINE), Ranks(1, 3), tokens_per_step=1)
    assert odd.is_link_assumed and [point.ranks.size for point in odd.scaling[:4]] == [1, 2, 3, 6]
    assert plan.scaling[0].efficiency[0] == 1
    falling = [point.efficiency[0] for point in plan.scaling[2:]]
    assert falling == sorted(falling, reverse=True)
    assert plan.scaling[1].efficiency[0] == pytest.approx(3.1 / 3.5)


def test_machines_go_through_json() -> None:
    assert Machine.from_json(MACHINE.to_json()) == MACHINE
    # A byte in 100 operations, and 28 bytes for AdamW.
    assert MACHINE.with_flops(1e14).optimizer_s == pytest.approx(28e-12)
