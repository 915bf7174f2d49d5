"""Sharded weights: a model that fits no single rank, cut over all of them (ZeRO stages 1 to 3)."""

from hvdkit.sharding.part_state import join_parts, load_sharded_state_dict, sharded_state_dict
from hvdkit.sharding.shard import can_share_weights, shard
from hvdkit.sharding.whole_state import full_state_dict, load_full_state_dict

__all__ = [
    "can_share_weights",
    "full_state_dict",
    "join_parts",
    "load_full_state_dict",
    "load_sharded_state_dict",
    "shard",
    "sharded_state_dict",
]
