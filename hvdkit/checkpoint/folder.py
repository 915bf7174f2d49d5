"""Saves, finds and loads checkpoint folders."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvdkit.checkpoint.structure import pack, unpack
from hvdkit.data.durable import complete_folder, remove_folder
from hvdkit.errors import CheckpointError
from hvdkit.runtime import World, raise_together
from hvdkit.untrusted import inside, parse_json

_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}\d+")
_FORMAT = 1
_STATE_FILES = ("state.json", "state.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: where its model lies, and the state that was saved with it."""

    folder: Path
    state: dict[str, Any]

    @property
    def model(self) -> Path:
        """The folder of model and tokenizer."""
        return self.folder / "model"


def save_checkpoint(
    world: World, checkpoints: Path, step: int, write_model: Callable[[Path], None], state: dict[str, Any]
) -> Path:
    """Write `checkpoints/step-N` from rank 0; returns it on all ranks. Collective.

    `write_model` puts model and tokenizer into the folder that it is given; `state` is nested data and tensors, the
    same on all ranks. Written beside, flushed, renamed: a checkpoint is complete or absent. Raises CheckpointError
    on all ranks if it cannot be written.
    """
    folder = checkpoints / f"{_PREFIX}{step:08d}"
    error: CheckpointError | None = None
    if world.is_root:
        try:
            with complete_folder(folder) as beside:
                _write(beside, step, write_model, state)
        except CheckpointError as problem:
            error = problem
        except Exception as problem:  # the disk's faults come as OSError, or as whatever safetensors makes of them
            error = CheckpointError(f"checkpoint {folder} cannot be written: {problem}")
    raise_together(world, error)
    return folder


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify the checkpoint in `folder`. Not collective. Raises CheckpointError if a file is missing or
    was changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        manifest = parse_json(_file(folder, "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise CheckpointError(
                f"checkpoint {folder} has format {manifest['format']}; this hvdkit reads format {_FORMAT}"
            )
        files: dict[str, str] = manifest["sha256"]
        for name in {*files, *_STATE_FILES}:
            if _hash(_file(folder, name)) != files[name]:
                raise CheckpointError(f"checkpoint {folder} is damaged: {name} is not what was written; use another")
        tensors = load_file(folder / "state.safetensors")
        state: dict[str, Any] = unpack(parse_json((folder / "state.json").read_text(encoding="utf-8")), tensors)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as problem:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {problem}") from problem
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {folder} cannot be read: state.json holds no dictionary")
    return Checkpoint(folder, state)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a run folder. Raises CheckpointError if none."""
    if (path / "manifest.json").is_file():
        return path
    found = _steps(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints in it")
    return found[-1]


def find_model(path: Path) -> Path:
    """The model folder that `path` means: of a run (its final model, else its newest checkpoint's), of a
    checkpoint, or itself. Raises CheckpointError if there is none."""
    for candidate in (path / "model", path):
        if (candidate / "config.json").is_file():
            return candidate
    if path.is_dir() and _steps(path / "checkpoints"):
        return find_checkpoint(path) / "model"
    raise CheckpointError(f"{path} holds no model: name a run folder, a checkpoint, or a folder with config.json")


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (0 for none of them), and what interrupted saves left behind.

    Not collective: call it on one rank, while none is being saved.
    """
    for folder in _steps(checkpoints)[:-keep] if keep > 0 else []:
        remove_folder(folder)
    for folder in [*checkpoints.glob(f".{_PREFIX}*.part"), *checkpoints.glob(f".{_PREFIX}*.old")]:
        shutil.rmtree(folder)


def _steps(checkpoints: Path) -> list[Path]:
    found = (path for path in checkpoints.glob(f"{_PREFIX}*") if (path / "manifest.json").is_file())
    # A copy that someone made beside them (step-00000100-good) is not ours to choose or delete.
    return sorted(
        (path for path in found if _NAME.fullmatch(path.name)), key=lambda path: int(path.name[len(_PREFIX) :])
    )


def _write(folder: Path, step: int, write_model: Callable[[Path], None], state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    (folder / "model").mkdir()
    write_model(folder / "model")
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(state, tensors, copies=False))  # which would double what saving takes
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(text, encoding="utf-8")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = {"format": _FORMAT, "step": step, "sha256": {name: _hash(folder / name) for name in names}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _file(folder: Path, name: str) -> Path:
    """A file of a checkpoint, which someone else may have made. Raises ValueError or OSError for what is none."""
    path = inside(folder, name)
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is not a regular file")  # reading a pipe would never end
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
