"""A LoRA adapter on its base as if it were a whole model (Hu et al. 2021, arXiv 2106.09685): W + s B A, by blocks.

Read are the folders that the PEFT library writes: adapter_config.json and adapter_model.safetensors (or .bin).
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hvdkit.errors import MergeError
from hvdkit.merge.files.interface import Info, TensorFile
from hvdkit.merge.files.safetensors_file import SafetensorsFile
from hvdkit.merge.files.torch_file import TorchFile
from hvdkit.untrusted import inside, parse_json, shown

CONFIG_FILE = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_FIRST = "base_model.model."
_LARGEST_ALPHA = 1e9
_REFUSED = {"use_dora": False, "bias": "none", "modules_to_save": None, "alora_invocation_tokens": None}
"""What an adapter may have that W + s B A does not say, with the value that means it has not."""


class _Update(NamedTuple):
    down: torch.Tensor
    """A: (r, in)"""
    up: torch.Tensor
    """B: (out, r), times s"""
    is_transposed: bool
    """Whether the weight is stored (in, out)."""


class Adapter:
    """`folder`'s adapter on `base`, which stays open. Raises MergeError for one that does not fit."""

    def __init__(self, folder: Path, base: TensorFile) -> None:
        self._base = base
        self.infos = dict(base.infos)
        self._updates = self._read_updates(folder)
        for name in self._updates:
            info = self.infos[name]
            self.infos[name] = Info(info.dtype, info.shape, torch.promote_types(info.dtype, torch.float32))

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `TensorFile`."""
        values = self._base.read(name, start, stop)
        update = self._updates.get(name)
        if update is None:
            return values
        width = self.infos[name].shape[-1]
        first, last = start // width, -(-stop // width)
        if update.is_transposed:
            rows = (update.up @ update.down[:, first:last]).T
        else:
            rows = update.up[first:last] @ update.down
        return values + rows.reshape(-1)[start - first * width : stop - first * width]

    def close(self) -> None:
        """See `TensorFile`."""

    def _read_updates(self, folder: Path) -> dict[str, _Update]:
        config = _config(folder)
        name = next((name for name in _WEIGHTS if (folder / name).is_file()), _WEIGHTS[-1])
        try:
            path = inside(folder, name)
        except ValueError as error:
            raise MergeError(f"{folder}: {error}") from None
        file = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
        tensors = {name: file.read(name, 0, info.count).view(info.shape).float() for name, info in file.infos.items()}
        file.close()
        updates = {}
        for name in [name for name in tensors if ".lora_A." in name]:
            other = name.replace(".lora_A.", ".lora_B.")
            target = name.removeprefix(_FIRST).split(".lora_A.")[0] + ".weight"
            if other not in tensors or target not in self.infos:
                raise MergeError(f"{folder}: {name} has no partner, or its base no {target}")
            down, up = tensors.pop(name), tensors.pop(other)
            if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or not down.numel():
                raise MergeError(f"{folder}: {name} is {tuple(down.shape)} and its partner {tuple(up.shape)}")
            update = _Update(down, up * _scale(config, down.shape[0]), bool(config.get("fan_in_fan_out")))
            shape = (up.shape[0], down.shape[1])
            if (shape[::-1] if update.is_transposed else shape) != self.infos[target].shape:
                raise MergeError(f"{folder}: {target} is {self.infos[target].shape} in the base, the adapter's {shape}")
            updates[target] = update
        if tensors or not updates:
            raise MergeError(
                f"{folder}: only LoRA of linear layers can be merged, not {', '.join(sorted(tensors)[:3])}"
            )
        return updates


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MergeError(f"{folder / CONFIG_FILE}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise MergeError(f"{folder / CONFIG_FILE}: must be a mapping")
    if str(config.get("init_lora_weights", True)).split("_")[0] in ("pissa", "olora", "corda", "loftq"):
        raise MergeError(
            f"{folder}: adapters begun by {config['init_lora_weights']} changed their base: merge them first"
        )
    for key, value in _REFUSED.items():
        if config.get(key, value) not in (value, [], {}, None):
            raise MergeError(f"{folder}: adapters with {key}={shown(config[key])} cannot be merged")
    if config.get("peft_type") != "LORA" or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise MergeError(f"{folder}: only LoRA of one rank and alpha can be merged")
    return config


def _scale(config: dict[str, Any], rank: int) -> float:
    alpha = config.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise MergeError(f"{CONFIG_FILE}: lora_alpha={shown(alpha)} is no scale of a LoRA adapter")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
