"""Whether a model's state fits into this node's memory, asked before the kernel kills a rank without a word."""

from pathlib import Path

import psutil
import torch

from hvdkit.errors import ConfigError
from hvdkit.runtime import World
from hvdkit.sharding.memory import state_bytes

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS_BYTES = 200e6
"""What a rank needs at the least beside the model: Python, torch, Horovod, MPI."""


def check_room(world: World, model: torch.nn.Module, stage: int, *, shared_weights: bool) -> None:
    """Raise ConfigError if the node's ranks cannot hold the state of `model` under AdamW, saying which stage fits.

    What the forward pass keeps comes on top, so that this passes does not mean that training will.
    """
    if world.device.type != "cpu":
        return
    parameters = list(model.parameters())
    whole = sum(parameter.numel() for parameter in parameters)
    frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    itemsize = parameters[0].element_size()

    def needed(at_stage: int, shared: bool) -> float:
        state = state_bytes(at_stage, whole, world.size, itemsize=itemsize, frozen=frozen,
                            state_per_parameter=2 * itemsize / 4, shared_weights=shared)  # fmt: skip
        return world.local_size * (state.total + _PROCESS_BYTES)

    limit, wanted = memory_limit(), needed(stage, shared_weights)
    if wanted <= limit:
        return
    advice = "no stage of --sharding fits: use a smaller model, or more nodes"
    for other in range(stage + 1, 4):
        if needed(other, False) <= limit:
            advice = f"--sharding {other} needs {needed(other, False) / 1e9:.1f} GB"
            break
    raise ConfigError(
        f"{world.local_size} ranks on {world.hostname} with --sharding {stage} need {wanted / 1e9:.1f} GB for "
        f"parameters, gradients and AdamW's state of {whole:,} parameters; there are {limit / 1e9:.1f} GB. {advice}"
    )


def memory_limit() -> float:
    """Bytes that this process and its neighbours may use: the node's memory, or the least limit of its cgroups."""
    limits = [float(psutil.virtual_memory().total)]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return limits[0]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            limits.append(_read_bytes(folder / name))
    return min(limits)


def _read_bytes(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return float("inf")
