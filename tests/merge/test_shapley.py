"""Shapley values against their definition in plain Python, and games whose values are known."""

import itertools
import math
import random
from pathlib import Path

import pytest
from PIL import Image

from hvdkit.errors import HvdkitError, MergeError
from hvdkit.merge.shapley import ShapleyValues, shapley_values
from hvdkit.merge.shapley_report import draw_shapley, shapley_table
from hvdkit.runtime import World, gather_objects


def by_all_orders(players: int, value: dict[tuple[int, ...], float]) -> list[float]:
    total = [0.0] * players
    for order in itertools.permutations(range(players)):
        for place, player in enumerate(order):
            total[player] += value[tuple(sorted(order[: place + 1]))] - value[tuple(sorted(order[:place]))]
    return [sum_ / math.factorial(players) for sum_ in total]


def random_game(players: int, seed: int) -> dict[tuple[int, ...], float]:
    choose = random.Random(seed)
    coalitions = (c for size in range(players + 1) for c in itertools.combinations(range(players), size))
    return {coalition: choose.gauss(0, 1) for coalition in coalitions}


@pytest.mark.parametrize("players", [1, 2, 3, 5, 6])
def test_exact_values_are_the_mean_over_all_orders(world: World, players: int) -> None:
    game = random_game(players, players)
    asked: list[tuple[int, ...]] = []
    found = shapley_values(world, players, lambda coalition: asked.append(coalition) or game[coalition])
    assert found.values == pytest.approx(by_all_orders(players, game), abs=1e-12)
    assert sum(found.values) == pytest.approx(game[tuple(range(players))] - game[()])
    assert found.errors == (0.0,) * players and found.evaluations == 2**players
    everyone = [coalition for part in gather_objects(world, asked) for coalition in part]
    assert sorted(everyone) == sorted(game), "each coalition once, over all ranks"
    assert len(set(gather_objects(world, found))) == 1


def test_known_games(world: World) -> None:
    """Additive: each is worth what it brings. Gloves: two left, one right, a pair is worth 1. A null player: 0."""
    brings = (0.5, -1.0, 0.0, 2.0)
    additive = shapley_values(world, 4, lambda coalition: 7.0 + sum(brings[player] for player in coalition))
    assert additive.values == pytest.approx(brings) and (additive.empty, additive.full) == (7.0, 8.5)
    gloves = shapley_values(world, 3, lambda coalition: float(2 in coalition and len(coalition) > 1))
    assert gloves.values == pytest.approx((1 / 6, 1 / 6, 4 / 6))


def test_sampled_values_are_within_their_error(world: World) -> None:
    game = random_game(5, 9)
    exact = by_all_orders(5, game)
    found = shapley_values(world, 5, game.__getitem__, orders=400, seed=3)
    assert sum(found.values) == pytest.approx(found.full - found.empty)
    assert all(0 < error < 0.15 for error in found.errors)
    z = [abs(value - right) / error for value, right, error in zip(found.values, exact, found.errors, strict=True)]
    assert max(z) < 3 and found.values != pytest.approx(exact, abs=1e-6)
    assert found == shapley_values(world, 5, game.__getitem__, orders=400, seed=3)
    assert found != shapley_values(world, 5, game.__getitem__, orders=400, seed=4)
    wider = shapley_values(world, 5, game.__getitem__, orders=25, seed=3)
    assert sum(wider.errors) == pytest.approx(4 * sum(found.errors), rel=0.4), "falls with the root of the orders"


def test_many_players_are_sampled(world: World) -> None:
    """70 players do not fit a machine word; in an additive game every order gives the same."""
    found = shapley_values(world, 70, lambda coalition: float(sum(coalition)), orders=3)
    assert found.values == pytest.approx(range(70)) and max(found.errors) < 1e-9
    assert found.evaluations <= 3 * 69 + 2


def test_faults_reach_every_rank(world: World) -> None:
    with pytest.raises(ValueError, match="players=0"):
        shapley_values(world, 0, len)
    with pytest.raises(ValueError, match="orders=1 "):
        shapley_values(world, 3, len, orders=1)
    with pytest.raises(MergeError, match=r"coalition \(0, 1\) is nan"):
        shapley_values(world, 2, lambda coalition: math.nan if len(coalition) == 2 else 0.0)
    with pytest.raises(HvdkitError, match="ZeroDivisionError"):
        shapley_values(world, 2, lambda coalition: 1 / (len(coalition) - 2))


def test_table_and_picture(tmp_path: Path) -> None:
    found = ShapleyValues((0.25, -0.5), (0.01, 0.02), 1.0, 0.75, 4)
    table = shapley_table(["law", "code"], found)
    assert table == ["law   +0.2500  +- 0.0100", "code  -0.5000  +- 0.0200", "sum   -0.2500  (4 coalitions evaluated)"]
    assert draw_shapley(tmp_path / "shapley.png", ["law", "code"], found, "nats/byte")
    assert Image.open(tmp_path / "shapley.png").size[0] > 400
