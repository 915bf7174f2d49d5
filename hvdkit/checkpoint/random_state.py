"""The state of every rank's random generators of torch."""

import torch

from hvdkit.runtime import World, gather_objects


def gather_random_state(world: World) -> dict[str, torch.Tensor]:
    """All ranks' generator states, on every rank: each (size, n) uint8. Collective."""
    mine = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(world.device)
    gathered = gather_objects(world, mine)
    return {kind: torch.stack([states[kind] for states in gathered]) for kind in mine}


def restore_random_state(world: World, saved: dict[str, torch.Tensor]) -> bool:
    """Set this rank's generators as they were; returns False, changing nothing, at another world size."""
    if len(saved["cpu"]) != world.size:
        return False
    torch.set_rng_state(saved["cpu"][world.rank].clone())
    if "cuda" in saved and world.device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"][world.rank].clone(), world.device)
    return True
