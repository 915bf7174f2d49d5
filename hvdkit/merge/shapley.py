"""Shapley values: what each submodel is worth in a merge, the mean of what it adds to the coalitions before it.

phi_i = sum over the coalitions S without i of |S|! (M-|S|-1)! / M! (v(S + i) - v(S)), exactly for few submodels (2^M
coalitions), beyond that the mean over random orders of all submodels, with its standard error. Source: Shapley 1953;
by sampled orders Castro et al. 2009, "Polynomial calculation of the Shapley value based on sampling".
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from hvdkit.errors import MergeError
from hvdkit.runtime import World, gather_objects, together

MOST_EXACT = 10
"""Submodels whose coalitions are all evaluated: 1024."""
_ORDERS = 100

Value = Callable[[tuple[int, ...]], float]
"""The worth of a coalition of players, in ascending order; () is the base. More is better."""


@dataclass(frozen=True)
class ShapleyValues:
    """One value per player; they add up to `full - empty`."""

    values: tuple[float, ...]
    errors: tuple[float, ...]
    """Standard errors; 0 where the values are exact."""
    empty: float
    full: float
    evaluations: int
    """Coalitions whose worth was asked for, over all ranks."""


def shapley_values(
    world: World, players: int, value: Value, *, orders: int | None = None, seed: int = 0
) -> ShapleyValues:
    """The Shapley values of `players` in the game `value`, on all ranks. Collective.

    Coalitions are divided over the ranks, each evaluated once, on one rank: `value` must not communicate.

    Args:
        orders: random orders to sample, 2 or more; None for exact values of up to 10 players, 100 orders beyond.
        seed: of the orders.

    Raises ValueError for fewer players than 1 or orders than 2, MergeError on all ranks where `value` fails or is not
    finite. Sends one number per coalition.
    """
    if players < 1 or (orders is not None and orders < 2):
        raise ValueError(f"players={players} must be 1 or more, and orders={orders} 2 or more")
    if orders is None and players <= MOST_EXACT:
        worth = _evaluate(world, range(1 << players), value)
        values, errors = _exact(players, worth), np.zeros(players)
    else:
        random = np.random.Generator(np.random.PCG64(seed))
        sampled = np.array([random.permutation(players) for _ in range(orders or _ORDERS)])
        before = _coalitions_before(sampled)
        after = before | 1 << sampled.astype(object)
        worth = _evaluate(world, {0, *map(int, after.flat)}, value)
        added = np.vectorize(worth.__getitem__)(after) - np.vectorize(worth.__getitem__)(before)
        gains = np.take_along_axis(added, sampled.argsort(1), 1)
        values, errors = gains.mean(0), gains.std(0, ddof=1) / math.sqrt(len(gains))
    return ShapleyValues(
        tuple(map(float, values)), tuple(map(float, errors)), worth[0], worth[(1 << players) - 1], len(worth)
    )


def _exact(players: int, worth: dict[int, float]) -> np.ndarray:  # type: ignore[type-arg]
    table = np.array([worth[coalition] for coalition in range(1 << players)])
    sizes = np.array([coalition.bit_count() for coalition in range(1 << players)])
    share = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    values = np.empty(players)
    for player in range(players):
        without = np.flatnonzero(np.arange(1 << players) >> player & 1 == 0)
        values[player] = share[sizes[without]] @ (table[without | 1 << player] - table[without])
    return values


def _coalitions_before(orders: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Of each place of each order the coalition of those before it, as bits: (orders, players) of Python integers."""
    bits: np.ndarray = 1 << orders.astype(object)  # type: ignore[type-arg]
    before: np.ndarray = np.cumsum(bits, axis=1) - bits  # type: ignore[type-arg]
    return before


def _evaluate(world: World, coalitions: Iterable[int], value: Value) -> dict[int, float]:
    """The worth of each coalition (bits), on all ranks; rank r takes every `world.size`-th."""
    mine = sorted(coalitions)[world.rank :: world.size]
    parts = gather_objects(world, together(world, lambda: {bits: _worth(_members(bits), value) for bits in mine}))
    return {bits: found for part in parts for bits, found in part.items()}


def _members(bits: int) -> tuple[int, ...]:
    return tuple(player for player in range(bits.bit_length()) if bits >> player & 1)


def _worth(members: tuple[int, ...], value: Value) -> float:
    found = float(value(members))
    if not math.isfinite(found):
        raise MergeError(f"the worth of coalition {members} is {found}: Shapley values need finite ones")
    return found
