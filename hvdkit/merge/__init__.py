"""Merging of models that were trained apart: theta = sum_i w_i theta_i and better rules, and their outputs together."""

from hvdkit.merge.ensemble import Ensemble
from hvdkit.merge.rules import RULES, Rule, rule_named
from hvdkit.merge.settings import Settings
from hvdkit.merge.shapley import ShapleyValues, shapley_values
from hvdkit.merge.soup import Soup, greedy_soup
from hvdkit.merge.states import merge_states

__all__ = [
    "RULES",
    "Ensemble",
    "Rule",
    "Settings",
    "ShapleyValues",
    "Soup",
    "greedy_soup",
    "merge_states",
    "rule_named",
    "shapley_values",
]
