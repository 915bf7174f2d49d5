"""The folders of checkpoints: finding them, reading them, dropping the old ones."""

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hvdkit.checkpoint.manifest import MANIFEST, Manifest, read_manifest, verify
from hvdkit.checkpoint.parts import State, outlines_of, read_common, read_own
from hvdkit.errors import CheckpointError
from hvdkit.files.durable import remove_folder
from hvdkit.runtime import World, share_object, together

_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}\d+")
_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        """The folder of model and tokenizer."""
        return self.folder / "model"

    def common(self) -> State:
        """Read the state that all ranks had alike."""
        return read_common(self.folder, self.manifest.files)

    def own(self, rank: int) -> State:
        """Read the state that rank `rank` of the `manifest.world_size` alone had."""
        return read_own(self.folder, self.manifest.files, rank)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verify all of the checkpoint in `folder`. Not collective. Raises CheckpointError if a file is missing or was
    changed."""
    manifest = _manifest(folder)
    verify(folder, manifest, manifest.files)
    return Checkpoint(folder, manifest)


def open_checkpoint(world: World, folder: Path) -> Checkpoint:
    """Verify the checkpoint in `folder`, each rank a share of its files. Collective.

    Raises CheckpointError on all ranks if a file is missing or was changed.
    """

    def check() -> Manifest:
        manifest = _manifest(folder)
        by_size = sorted(manifest.files, key=lambda name: (-manifest.files[name].n_bytes, name))
        verify(folder, manifest, by_size[world.rank :: world.size])
        return manifest

    return Checkpoint(folder, together(world, check))


def open_newest(world: World, path: str | Path, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that `path` means: itself, or the newest one of a run folder that is whole. Collective.

    Newer ones that are damaged are told to `say`. Raises CheckpointError on all ranks if there is none.
    """
    path = Path(path)
    found = together(world, lambda: [path] if _is_complete(path) else _all(path / "checkpoints"))
    found = share_object(world, found)
    for number, folder in enumerate(reversed(found)):
        try:
            return open_checkpoint(world, folder)
        except CheckpointError as problem:
            if number == len(found) - 1:
                raise
            say(f"{problem}; the checkpoint before it is used")
    raise _none(path)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a run folder. Raises CheckpointError if none."""
    if _is_complete(path):
        return path
    found = list_checkpoints(path / "checkpoints")
    if not found:
        raise _none(path)
    return found[-1]


def find_model(path: Path) -> Path:
    """The model folder that `path` means: of a run (its final model, else its newest checkpoint's), of a
    checkpoint, or itself. Raises CheckpointError if there is none."""
    for candidate in (path / "model", path):
        if (candidate / "config.json").is_file():
            return candidate
    if path.is_dir() and list_checkpoints(path / "checkpoints"):
        return find_checkpoint(path) / "model"
    raise CheckpointError(f"{path} holds no model: name a run folder, a checkpoint, or a folder with config.json")


def list_checkpoints(checkpoints: str | Path) -> list[Path]:
    """The complete checkpoints in the folder `checkpoints`, the oldest first."""
    return [path for path in _all(Path(checkpoints)) if _is_complete(path)]


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return checkpoints / f"{_PREFIX}{step:08d}"


def set_aside(checkpoints: Path, after: Path | None = None) -> None:
    """Rename checkpoints newer than `after` (None: all), damaged ones, out of the way of a run that goes on there.

    They become `step-00000100.damaged`, for a person to look at. Not collective: call it on one rank.
    """
    for folder in _all(checkpoints):
        if after is None or _step(folder) > _step(after):
            aside = folder.with_name(folder.name + _DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def prune(checkpoints: Path, keep: int, keep_best: int = 0) -> None:
    """Delete all checkpoints but the newest `keep` (0: keeps all) and the `keep_best` of least validation loss.

    Those that were saved without a validation loss are none of the best. Not collective: call it on one rank.
    """
    found = list_checkpoints(checkpoints)
    losses = {folder: _validation_loss(folder) for folder in found}
    measured = [folder for folder in found if losses[folder] < math.inf]
    best = sorted(measured, key=lambda folder: losses[folder])[:keep_best]
    for folder in found[:-keep] if keep > 0 else []:
        if folder not in best:
            remove_folder(folder)


def remove_leftovers(checkpoints: Path) -> None:
    """Delete what interrupted saves left behind. Not collective: call it on one rank, while none is being saved."""
    for folder in [*checkpoints.glob(f".{_PREFIX}*.part"), *checkpoints.glob(f".{_PREFIX}*.old")]:
        shutil.rmtree(folder)


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    missing = outlines_of(manifest.world_size) - manifest.files.keys()
    if missing:
        raise CheckpointError(f"checkpoint {folder} cannot be read: its manifest lacks {min(missing)}")
    return manifest


def _validation_loss(folder: Path) -> float:
    try:
        loss = read_manifest(folder).validation_loss
    except CheckpointError:
        loss = None
    return math.inf if loss is None or math.isnan(loss) else loss


def _all(checkpoints: Path) -> list[Path]:
    """Whole and damaged, the oldest first."""
    # A copy that someone made beside them (step-00000100-good) is not ours to choose or delete.
    return sorted((path for path in checkpoints.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name)), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[len(_PREFIX) :])


def _is_complete(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _none(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints in it")
