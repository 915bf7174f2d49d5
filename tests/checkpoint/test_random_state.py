"""Every rank's generator goes on as it would have."""

import json
from pathlib import Path

import torch

from hvdkit.checkpoint import gather_random_state, load_checkpoint, restore_random_state, save_checkpoint
from hvdkit.runtime import World, gather_objects


def draw() -> list[float]:
    return torch.rand(5).tolist()


def test_every_rank_draws_on_as_it_would_have(world: World, shared_path: Path) -> None:
    torch.manual_seed(100 + world.rank)
    torch.randn(3 + world.rank)  # different places, and normal numbers keep one in reserve
    saved = gather_random_state(world)
    assert {kind: tensor.shape[0] for kind, tensor in saved.items()} == dict.fromkeys(saved, world.size)
    wanted = draw()
    assert len({json.dumps(numbers) for numbers in gather_objects(world, wanted)}) == world.size
    folder = save_checkpoint(world, shared_path, 1, lambda folder: None, {"random": saved})
    for state in (saved, load_checkpoint(folder).state["random"]):
        torch.manual_seed(0)
        assert restore_random_state(world, state)
        assert draw() == wanted


def test_another_number_of_ranks_changes_nothing(world: World) -> None:
    saved = gather_random_state(world)
    for other in (torch.cat((saved["cpu"], saved["cpu"][:1])), saved["cpu"][1:]):
        torch.manual_seed(3)
        expected = draw()
        torch.manual_seed(3)
        assert restore_random_state(world, {**saved, "cpu": other}) is False
        assert draw() == expected
