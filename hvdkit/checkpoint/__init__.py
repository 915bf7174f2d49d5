"""Checkpoints: complete or absent, verified when written and when read, made of safetensors and JSON; no pickle.

saver = Saver(world, run / "checkpoints", keep=2, keep_best=1, background=True)
saver.save(step, common, own, write_model)        # collective; each rank writes its part
saver.finish()                                    # collective; the last one is complete
checkpoint = open_newest(world, run, print)       # the newest that is whole
checkpoint.common(), checkpoint.own(world.rank), checkpoint.model, checkpoint.manifest
"""

from hvdkit.checkpoint.folder import (
    Checkpoint,
    find_checkpoint,
    find_model,
    list_checkpoints,
    load_checkpoint,
    open_checkpoint,
    open_newest,
    prune,
    set_aside,
)
from hvdkit.checkpoint.manifest import Manifest
from hvdkit.checkpoint.random_state import random_state, restore_random_state, seed_generators
from hvdkit.checkpoint.saver import Saver
from hvdkit.checkpoint.structure import pack, unpack

__all__ = [
    "Checkpoint",
    "Manifest",
    "Saver",
    "find_checkpoint",
    "find_model",
    "list_checkpoints",
    "load_checkpoint",
    "open_checkpoint",
    "open_newest",
    "pack",
    "prune",
    "random_state",
    "restore_random_state",
    "seed_generators",
    "set_aside",
    "unpack",
]
