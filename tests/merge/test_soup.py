"""Greedy soup against cases worked out by hand."""

import math

import pytest
import torch

from hvdkit.errors import MergeError
from hvdkit.merge.soup import cook, greedy_soup
from hvdkit.merge.states import State


def states(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"w": torch.tensor([value], dtype=torch.float64)} for value in values]


def distance(state: State) -> float:
    return abs(float(state["w"]))


def test_a_case_by_hand() -> None:
    """Best first: 1; with -2 the mean is -0.5, kept; with 3 it is 2/3, worse; with -4 it is -5/3, worse."""
    soup = greedy_soup(states(3.0, -4.0, 1.0, -2.0), distance)
    assert soup.kept == (2, 3) and soup.metric == 0.5 and float(soup.state["w"]) == -0.5


def test_ties_go_by_order_and_what_changes_nothing_is_kept() -> None:
    soup = greedy_soup(states(2.0, 2.0, -2.0), distance)
    assert soup.kept == (0, 1, 2) and soup.metric == pytest.approx(2 / 3)


def test_never_worse_than_the_best_and_never_with_nan() -> None:
    def metric(state: State) -> float:
        value = float(state["w"])
        return math.nan if value > 4 else value

    soup = greedy_soup(states(9.0, 1.0, 3.0, 0.5), metric)
    assert soup.kept == (3,) and soup.metric == 0.5
    soup = greedy_soup(states(9.0, 1.0), lambda state: math.nan if float(state["w"]) > 1 else 1.0)
    assert soup.kept == (1,)
    with pytest.raises(MergeError, match="none of 2 submodels"):
        greedy_soup(states(9.0, 8.0), metric)
    with pytest.raises(MergeError, match="none of 0"):
        greedy_soup([], metric)


def test_another_merge_than_the_average() -> None:
    """The largest instead of the mean: nothing after the first makes it smaller, equals do not make it worse."""
    soup = cook(states(2.0, 1.0, 1.0), distance, lambda some: max(some, key=lambda state: float(state["w"])))
    assert soup.kept == (1, 2) and float(soup.state["w"]) == 1.0
