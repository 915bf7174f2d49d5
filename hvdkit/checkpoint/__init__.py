"""Checkpoints: complete or absent, verified when read, made of safetensors and JSON; nothing is pickled.

A checkpoint is a folder: `model/` (loadable by itself, tokenizer included), `state.safetensors` and `state.json`
(optimizer, random generators of every rank, position), and `manifest.json` with the hash of every other file.
"""

from hvdkit.checkpoint.folder import Checkpoint, find_checkpoint, find_model, load_checkpoint, prune, save_checkpoint
from hvdkit.checkpoint.random_state import gather_random_state, restore_random_state
from hvdkit.checkpoint.structure import pack, unpack

__all__ = [
    "Checkpoint",
    "find_checkpoint",
    "find_model",
    "gather_random_state",
    "load_checkpoint",
    "pack",
    "prune",
    "restore_random_state",
    "save_checkpoint",
    "unpack",
]
