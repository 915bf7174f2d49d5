"""The state of this rank's random generators: torch's, Python's and NumPy's, which one's own model or data may use."""

import random
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Set this process's generators as `seed` says, so that a run that begins anew draws the same."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of all generators of this process that `restore_random_state` sets: nested data and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(device: torch.device, saved: dict[str, Any]) -> None:
    """Set this process's generators as they were."""
    torch.set_rng_state(saved["cpu"].clone())
    random.setstate(saved["python"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"].clone(), device)
