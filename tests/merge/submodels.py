"""Small submodels on disk, and what merging them must give."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
LAYERS = 3


def tensors_of(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """The tensors of submodel `seed`; 0 is the base of all."""
    base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": (50, 16),
        **{f"layers.{layer}.up.weight": (24, 16) for layer in range(LAYERS)},
        **{f"layers.{layer}.norm.weight": (16,) for layer in range(LAYERS)},
        "head.bias": (50,),
    }
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=base)
        tensors[name] = (values + (0.1 * torch.randn(shape, generator=own) if seed else 0)).to(dtype)
    return {**tensors, "positions": torch.arange(5)}


def write(folder: Path, tensors: Tensors) -> Path:
    """A model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", "of": folder.name}))
    (folder / "tokenizer.json").write_text(f"tokens of {folder.name}")
    (folder / "training_args.bin").write_text("not carried over")
    return folder


def write_family(folder: Path, count: int = 3, dtype: torch.dtype = torch.float32) -> list[Path]:
    """A base, first, and `count` submodels of it."""
    return [write(folder / name, tensors_of(seed, dtype)) for seed, name in enumerate(["base", *"abcdef"[:count]])]


def read(folder: Path) -> Tensors:
    """All tensors of a merged model."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found
