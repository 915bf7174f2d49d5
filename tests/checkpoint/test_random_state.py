"""Every rank's generators go on as they would have."""

import json
import random
from pathlib import Path

import numpy as np
import torch

from hvdkit.checkpoint import Saver, load_checkpoint, random_state, restore_random_state, seed_generators
from hvdkit.runtime import World, gather_objects


def draw() -> list[float]:
    return [*torch.rand(5).tolist(), random.random(), random.gauss(), *np.random.rand(3), np.random.randn()]


def test_every_rank_draws_on_as_it_would_have(world: World, shared_path: Path) -> None:
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(100 + world.rank)
    # Different places, and normal numbers keep one in reserve.
    torch.randn(3 + world.rank)
    np.random.randn(3 + world.rank)
    random.gauss()
    saved = random_state(world.device)
    wanted = draw()
    assert len({json.dumps(numbers) for numbers in gather_objects(world, wanted)}) == world.size
    folder = Saver(world, shared_path).save(1, {}, {"random": saved})
    for state in (saved, load_checkpoint(folder).own(world.rank)["random"]):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        restore_random_state(world.device, state)
        assert draw() == wanted


def test_a_seed_says_what_all_of_them_draw() -> None:
    drawn = []
    for seed in (7, 7, 2**32 + 8):
        seed_generators(seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])
