"""The cost model against numbers worked out by hand, the choice for made-up parameters, and the probe itself."""

import json
import time
from collections.abc import Iterator

import pytest
import torch

from hvdkit.collectives import DirectCollectives, direct_collectives
from hvdkit.collectives.algorithms import COLLECTIVES
from hvdkit.collectives.choice import MARGIN, Choice, choose_all
from hvdkit.collectives.cost import Curve, Parameters, wire_factor
from hvdkit.collectives.group import Group
from hvdkit.collectives.probe import offered, probe
from hvdkit.runtime import World, gather_objects

ONE_NODE = ((0, 1),)
TWO_NODES = ((0, 1), (2, 3))


@pytest.fixture
def collectives(world: World) -> Iterator[DirectCollectives]:
    if world.comm is None:
        pytest.skip("hvdkit's own algorithms need MPI")
    made = direct_collectives(world)
    before = made.algorithms.choose
    yield made
    made.algorithms.choose = before


def parameters(nodes: tuple[tuple[int, ...], ...], curves: dict[str, Curve]) -> Parameters:
    return Parameters(nodes, 2e-6, 1e-6, curves={("all_reduce", name): curve for name, curve in curves.items()})


def test_a_curve_goes_through_its_points_and_straight_between_them() -> None:
    curve = Curve(((100, 10e-6), (1100, 20e-6), (2100, 50e-6)))
    assert curve.seconds(100) == 10e-6
    assert curve.seconds(1100) == 20e-6
    assert curve.seconds(600) == pytest.approx(15e-6)
    assert curve.seconds(1600) == pytest.approx(35e-6)
    assert curve.seconds(1) == curve.latency_s == 10e-6


def test_a_curve_goes_on_at_the_rate_of_its_last_points() -> None:
    curve = Curve(((100, 10e-6), (1100, 20e-6), (2100, 50e-6)))
    assert curve.s_per_byte == pytest.approx(30e-9)
    assert curve.seconds(12100) == pytest.approx(50e-6 + 10_000 * 30e-9)


def test_a_curve_goes_on_no_faster_than_the_wire() -> None:
    slow = Curve(((100, 10e-6), (1100, 20e-6)), wire_s_per_byte=80e-9)
    assert slow.seconds(2100) == pytest.approx(20e-6 + 1000 * 80e-9)
    fast = Curve(((100, 10e-6), (1100, 20e-6)), wire_s_per_byte=1e-9)
    assert fast.seconds(2100) == pytest.approx(30e-6)


def test_a_curve_of_one_point_has_the_bandwidth_of_the_wire() -> None:
    assert Curve(((100, 10e-6),), wire_s_per_byte=80e-9).seconds(1100) == pytest.approx(90e-6)
    assert Curve(((100, 10e-6),)).seconds(1100) == pytest.approx(11e-6)


def test_a_curve_goes_on_no_faster_than_memory() -> None:
    assert Curve(((100, 20e-6), (1100, 10e-6))).seconds(1100 + 10**9) == pytest.approx(10e-6 + 0.02)


@pytest.mark.parametrize(
    "collective, algorithm, nodes, ranks, factor",
    [
        ("all_reduce", "hierarchical", 2, 4, 1.0),
        ("all_reduce", "hierarchical", 4, 16, 1.5),
        ("all_reduce", "ring", 2, 4, 1.5),
        ("all_reduce", "ring", 4, 8, 1.75),
        ("all_reduce", "tree", 2, 4, 2.0),
        ("all_reduce", "tree", 3, 3, 4.0),
        ("all_reduce", "tree", 8, 8, 6.0),
        ("all_reduce", "mpi", 4, 16, 1.5),
        ("all_reduce", "ring", 1, 4, 0.0),
        ("all_reduce", "mpi", 1, 4, 0.0),
        ("reduce_scatter", "hierarchical", 2, 4, 0.5),
        ("reduce_scatter", "ring", 2, 4, 0.75),
        ("reduce_scatter", "mpi", 2, 4, 0.5),
        ("all_gather", "hierarchical", 2, 4, 2.0),
        ("all_gather", "ring", 2, 4, 3.0),
        ("all_gather", "hierarchical", 4, 16, 12.0),
        ("all_gather", "ring", 1, 4, 0.0),
        ("broadcast", "tree", 2, 4, 0.0),
    ],
)
def test_wire_factor(collective: str, algorithm: str, nodes: int, ranks: int, factor: float) -> None:
    assert wire_factor(collective, algorithm, nodes, ranks) == factor


def test_two_nodes_with_a_slow_wire() -> None:
    """100 MB/s, probed to 64 KB: the tree has the shortest latency, the hierarchical one sends least."""
    per_byte = 1 / 100e6
    curves = {}
    for name, latency_s in {"mpi": 250e-6, "tree": 200e-6, "ring": 900e-6, "hierarchical": 500e-6}.items():
        factor = 1.5 if name == "mpi" else wire_factor("all_reduce", name, 2, 4)
        wire_s = factor * per_byte
        curves[name] = Curve(((256, latency_s), (2**16, latency_s + 2**16 * wire_s)), wire_s)
    choice = choose_all(parameters(TWO_NODES, curves))
    assert choice("all_reduce", 16) == choice("all_reduce", 1024) == "tree"
    # 250 us + 1.5 n / 100 MB/s < 200 us + 2.0 n / 100 MB/s where n > 10 kB
    assert choice("all_reduce", 8 * 1024) == "tree"
    assert choice("all_reduce", 16 * 1024) == choice("all_reduce", 32 * 1024) == "mpi"
    # 500 us + 1.0 n / 100 MB/s < 250 us + 1.5 n / 100 MB/s where n > 50 kB
    for nbytes in (2**16, 2**17, 2**20, 10**8, 2**32, 2**40):
        assert choice("all_reduce", nbytes) == "hierarchical"
    predicted = dict(choice.explain("all_reduce", 100_000_000))
    assert predicted["hierarchical"] == pytest.approx(1.0, rel=0.01)
    assert predicted["ring"] == pytest.approx(1.5, rel=0.01)
    assert predicted["tree"] == pytest.approx(2.0, rel=0.01)


def test_the_choice_is_the_cheapest_but_for_the_margin() -> None:
    curves = {
        "mpi": Curve(((256, 5e-6), (2**20, 400e-6))),
        "ring": Curve(((256, 30e-6), (2**20, 300e-6))),
        "shared_memory": Curve(((256, 8e-6), (2**20, 500e-6))),
    }
    choice = choose_all(parameters(ONE_NODE, curves))
    for power in range(4, 33):
        costs = {name: curve.seconds(2**power) for name, curve in curves.items()}
        assert costs[choice("all_reduce", 2**power)] <= min(costs.values()) * (1 + MARGIN)
    assert choice("all_reduce", 64) == "mpi"
    assert choice("all_reduce", 2**30) == "ring"


def test_where_the_probe_is_in_doubt_a_long_message_moves_least() -> None:
    """Within half of the cheapest, from 1 MB on."""
    curves = {
        "mpi": Curve(((256, 5e-6), (2**23, 3000e-6))),
        "shared_memory": Curve(((256, 5.4e-6), (2**23, 4200e-6))),
    }
    choice = choose_all(parameters(ONE_NODE, curves))
    assert choice("all_reduce", 256) == choice("all_reduce", 2**19) == "mpi"
    assert choice("all_reduce", 2**20) == choice("all_reduce", 2**30) == "shared_memory"


def test_where_no_long_message_was_probed_one_moves_least() -> None:
    curves = {"tree": Curve(((256, 5e-6), (2**19, 200e-6))), "shared_memory": Curve(((256, 9e-6), (2**19, 900e-6)))}
    choice = choose_all(parameters(ONE_NODE, curves))
    assert choice("all_reduce", 2**19) == "tree"
    assert choice("all_reduce", 2**20) == choice("all_reduce", 2**30) == "shared_memory"


def test_further_bytes_of_a_pipeline_cost_only_the_wire() -> None:
    """Probed with one block, which is first in memory and then on the wire; 8 ns a byte are those of 1 Gbit/s."""
    points = ((256, 1e-4), (2**19, 8e-3))
    assert Curve(points, 8e-9, is_pipelined=True).seconds(2**25) == pytest.approx(8e-3 + (2**25 - 2**19) * 8e-9)
    assert Curve(points, 8e-9).seconds(2**25) == pytest.approx(7.9e-3 / (2**19 - 256) * (2**25 - 2**19) + 8e-3)


def test_explain_names_all_algorithms_cheapest_first() -> None:
    curves = {"mpi": Curve(((256, 5e-6),)), "tree": Curve(((256, 3e-6),)), "ring": Curve(((256, 9e-6),))}
    choice = choose_all(parameters(ONE_NODE, curves))
    assert choice.explain("all_reduce", 256) == [("tree", 3e-6), ("mpi", 5e-6), ("ring", 9e-6)]


def awkward() -> Parameters:
    curves = {
        ("all_reduce", "mpi"): Curve(((256, 0.1 + 0.2), (2**22, 1 / 3)), 1e-9 / 3),
        ("all_reduce", "ring"): Curve(((256, 5e-324),)),
        ("broadcast", "mpi"): Curve(((256, 1e-6),)),
    }
    return Parameters(((0, 2), (1, 3)), 1 / 7e6, 1 / 3e6, 2e-5 / 3, 1e9 / 7, curves, 0.123456789012345678)


def test_parameters_survive_json_exactly() -> None:
    for made in (awkward(), parameters(ONE_NODE, {"mpi": Curve(((256, 5e-6),))})):
        again = Parameters.from_json(json.loads(json.dumps(made.to_json())))
        assert again == made
        assert choose_all(again) == choose_all(made)


def test_other_things_are_not_taken_for_parameters() -> None:
    with pytest.raises(ValueError, match="format None is not 1"):
        Parameters.from_json({})
    saved = awkward().to_json()
    del saved["curves"]["all_reduce"]["ring"]["bytes_and_seconds"]
    with pytest.raises(ValueError, match="bytes_and_seconds"):
        Parameters.from_json(saved)


def test_parameters_fit_the_same_ranks_and_algorithms_only() -> None:
    made = awkward()
    assert made.fits(((0, 2), (1, 3)), list(made.curves))
    assert not made.fits(((0, 1), (2, 3)), list(made.curves))
    assert not made.fits(((0, 2), (1, 3)), list(made.curves)[:-1])


def test_all_ranks_choose_alike(world: World, collectives: DirectCollectives) -> None:
    choice = collectives.algorithms.choose
    if world.size == 1:
        assert choice("all_reduce", 1024) == "mpi"
        return
    assert isinstance(choice, Choice)
    assert choice.parameters.fits(collectives.group.members, offered(collectives.algorithms))
    everyones = gather_objects(world, (choice.table, choice.parameters.to_json()))
    assert all(one == everyones[0] for one in everyones)
    for collective in COLLECTIVES:
        for nbytes in (1, 4096, 2**20, 2**33):
            assert choice(collective, nbytes) in collectives.algorithms.names(collective)


@pytest.mark.parametrize("layout", ["one node", "two nodes"])
def test_the_probe_keeps_to_its_budget(world: World, collectives: DirectCollectives, layout: str) -> None:
    if world.size == 1:
        pytest.skip("one rank has nothing to probe")
    assert world.comm is not None
    nodes = None if layout == "one node" else [int(rank == world.size - 1) for rank in range(world.size)]
    group = Group(world.comm, nodes)
    algorithms = type(collectives.algorithms)(group, collectives.algorithms._made["horovod"])
    started = time.perf_counter()
    found = probe(group, algorithms, collectives.meeting, budget_s=0.3)
    took_s = time.perf_counter() - started
    assert took_s < 0.3 + 3.0, "the slack is for a busy machine"
    assert abs(found.probe_s - took_s) < 1.0
    assert found.fits(group.members, offered(algorithms))
    assert (found.wire_bytes_per_s is None) == group.is_one_node
    for curve in found.curves.values():
        seconds = [point[1] for point in curve.points]
        assert len(seconds) >= 2
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    algorithms._made.pop("horovod")
    algorithms.close()
    group.close()


def test_an_explicit_strategy_wins_over_the_choice(world: World, collectives: DirectCollectives) -> None:
    asked: list[tuple[str, int]] = []

    def choose(collective: str, nbytes: int) -> str:
        asked.append((collective, nbytes))
        return "ring"

    collectives.algorithms.choose = choose
    for strategy in collectives.algorithms.names("all_reduce"):
        assert collectives.algorithms.resolve("all_reduce", 400, strategy) == strategy
        summed = collectives.all_reduce_(torch.full((100,), 1.0), strategy=strategy)
        assert torch.equal(summed, torch.full((100,), float(world.size)))
    assert asked == []
    collectives.all_reduce_(torch.full((100,), 1.0), strategy="auto")
    assert asked == [("all_reduce", 400)]
