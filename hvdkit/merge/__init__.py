"""Merging of models that were trained apart: theta = sum_i w_i theta_i and better rules, and their outputs together."""

from hvdkit.merge.rules import RULES, Rule, rule_named
from hvdkit.merge.settings import Settings
from hvdkit.merge.states import merge_states

__all__ = ["RULES", "Rule", "Settings", "merge_states", "rule_named"]
