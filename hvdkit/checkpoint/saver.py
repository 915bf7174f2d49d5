"""Saves checkpoints: each rank its part, complete or absent, in the background if wanted.

Every rank writes its part into one hidden folder, flushes it, reads it back from the disk and leaves a mark with the
hashes there. When all marks are there, rank 0 writes the manifest and renames the folder; only then are older
checkpoints deleted. In the background that goes on beside the training, on a thread of each rank and through the file
system alone, which the ranks must share: a collective there could meet one of the training. What failed on any rank is
raised on all at the next `save` or `finish`.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hvdkit.checkpoint.folder import folder_of, prune, remove_leftovers
from hvdkit.checkpoint.manifest import MANIFEST, Manifest, Written, versions
from hvdkit.checkpoint.parts import Part, State, WriteModel, make_part
from hvdkit.errors import CheckpointError, HvdkitError
from hvdkit.files.durable import flush_folder, hidden_folder, publish_folder
from hvdkit.runtime import World, gather_objects, raise_together, share_object, together

_POLL_S = (0.01, 0.5)


@dataclass
class SavingTime:
    """What saving took, on this rank."""

    saves: int = 0
    n_bytes: int = 0
    """Written by this rank."""
    exposed_s: float = 0.0
    """Training waited."""
    background_s: float = 0.0
    """Written while training went on."""


@dataclass
class _UnderWay:
    """A checkpoint that is being written."""

    folder: Path
    beside: Path
    part: Part | None
    make_manifest: Callable[[Mapping[str, Written]], Manifest]
    thread: threading.Thread | None = None
    error: Exception | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)


class Saver:
    """Saves into the folder `checkpoints`, which all ranks reach.

    Args:
        world: the ranks, all of which save together.
        checkpoints: gets a folder `step-00000100` per checkpoint. What interrupted saves left there is removed.
        keep: how many of the newest stay; 0 for all.
        keep_best: how many of the least validation loss stay besides.
        background: write while training goes on; needs room for a copy of what is saved.
        config: the run's options, for the manifest.

    Collective.
    """

    def __init__(
        self, world: World, checkpoints: str | Path, *, keep: int = 2, keep_best: int = 1, background: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._world, self._checkpoints = world, Path(checkpoints)
        self._keep, self._keep_best, self._config = keep, keep_best, dict(config or {})
        self.background = background
        self.time = SavingTime()
        self.last_step: int | None = None
        """Of the checkpoint that was saved last by this object."""
        self._under_way: _UnderWay | None = None
        together(world, lambda: remove_leftovers(self._checkpoints) if world.is_root else None)

    def save(
        self, step: int, common: State, own: State, write_model: WriteModel | None = None, *, model_bytes: int = 0,
        validation_loss: float | None = None,
    ) -> Path:  # fmt: skip
        """Save the checkpoint of `step`; returns its folder on all ranks. Collective.

        `common` is state that all ranks have alike, `own` what this one has; both nested data and tensors.
        `write_model` puts the model's files, about `model_bytes`, into a folder, on rank 0; in the background it is
        called later and must not follow a model that trains on. Raises CheckpointError on all ranks if this checkpoint
        cannot be written, or the one before it could not; nothing is left of it then, and older ones stay.
        """
        self.finish()
        begun = time.perf_counter()
        world, folder = self._world, folder_of(self._checkpoints, step)
        beside = self._make_folder(folder)
        try:
            part = together(world, lambda: make_part(
                world.rank, world.size, common, own, write_model, model_bytes=model_bytes, copies=self.background
            ))  # fmt: skip
        except HvdkitError:
            self._discard(beside)
            raise

        def manifest(files: Mapping[str, Written]) -> Manifest:
            return Manifest(step, world.size, files, validation_loss, self._config, versions())

        self._under_way = _UnderWay(folder, beside, part, manifest)
        if self.background:
            self._under_way.thread = threading.Thread(
                target=self._write, args=(self._under_way,), name="hvdkit checkpoint", daemon=True
            )
            self._under_way.thread.start()
        else:
            self._write_now(self._under_way)
        self.time.saves += 1
        self.time.exposed_s += time.perf_counter() - begun
        self.last_step = step
        return folder

    def finish(self) -> None:
        """Wait until what is being written is complete. Collective.

        Raises CheckpointError on all ranks if it failed on any.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None or under_way.thread is None:
            return
        begun = time.perf_counter()
        try:
            if not self._world.is_root:
                under_way.thread.join()
            raise_together(self._world, under_way.error)
            if self._world.is_root:
                under_way.thread.join()
            raise_together(self._world, under_way.error)
        except CheckpointError:
            under_way.abandoned.set()
            under_way.thread.join()
            self._discard(under_way.beside)
            raise
        finally:
            self.time.exposed_s += time.perf_counter() - begun

    def lines(self) -> list[str]:
        """What a user should know of the saving, in lines."""
        if not self.time.saves:
            return []
        meanwhile = f", {self.time.background_s:.2f} s were written meanwhile" if self.background else ""
        count = f"{self.time.saves} checkpoint{'s' if self.time.saves > 1 else ''}"
        return [f"{count} saved: training waited {self.time.exposed_s:.2f} s for them{meanwhile}"]

    def _make_folder(self, folder: Path) -> Path:
        def make() -> Path | None:
            if not self._world.is_root:
                return None
            try:
                if folder.exists():
                    raise FileExistsError(17, "File exists", str(folder))
                return hidden_folder(folder)
            except OSError as problem:
                raise _cannot(folder, problem) from problem

        beside = share_object(self._world, together(self._world, make))
        assert beside is not None
        return beside

    def _write_now(self, under_way: _UnderWay) -> None:
        try:
            files = gather_objects(self._world, together(self._world, lambda: self._write_part(under_way)))
            together(self._world, lambda: self._commit(under_way, files) if self._world.is_root else None)
        except CheckpointError:
            self._discard(under_way.beside)
            raise
        finally:
            self._under_way = None

    def _write(self, under_way: _UnderWay) -> None:
        """The thread."""
        begun = time.perf_counter()
        try:
            files = self._write_part(under_way)
            if self._world.size > 1:
                _leave_mark(under_way.beside, self._world.rank, files)
            if self._world.is_root:
                others = [_wait_for_mark(under_way, rank) for rank in range(1, self._world.size)]
                self._commit(under_way, [files, *others])
        except _AbandonedError:
            pass
        except CheckpointError as problem:
            under_way.error = problem
        except BaseException as problem:  # a SystemExit would end this thread without a word, and rank 0's would wait
            under_way.error = _cannot(under_way.folder, problem)
        finally:
            under_way.part = None  # the copies
            self.time.background_s += time.perf_counter() - begun

    def _write_part(self, under_way: _UnderWay) -> dict[str, Written]:
        assert under_way.part is not None
        try:
            files = under_way.part.write(under_way.beside)
        except CheckpointError:
            raise
        except Exception as problem:  # the disk's faults come as OSError, or as whatever safetensors makes of them
            raise _cannot(under_way.folder, problem) from problem
        self.time.n_bytes += sum(written.n_bytes for written in files.values())
        return files

    def _commit(self, under_way: _UnderWay, everyones: list[dict[str, Written]]) -> None:
        """All parts are on disk: complete the checkpoint, then drop older ones. On rank 0."""
        beside = under_way.beside
        files = {name: written for files in everyones for name, written in sorted(files.items())}
        try:
            (beside / MANIFEST).write_text(under_way.make_manifest(files).to_json(), encoding="utf-8")
            for rank in range(self._world.size):
                _mark(beside, rank).unlink(missing_ok=True)
            flush_folder(beside, [MANIFEST])
            publish_folder(beside, under_way.folder)
        except OSError as problem:
            raise _cannot(under_way.folder, problem) from problem
        with suppress(OSError):  # room that is not won now is won after the next save
            prune(self._checkpoints, self._keep, self._keep_best)

    def _discard(self, beside: Path) -> None:
        gather_objects(self._world, None)  # nobody writes there any more
        if self._world.is_root:
            shutil.rmtree(beside, ignore_errors=True)
        gather_objects(self._world, None)


class _AbandonedError(Exception):
    pass


def _mark(folder: Path, rank: int) -> Path:
    return folder / f".written-{rank:05d}.json"


def _leave_mark(folder: Path, rank: int, files: Mapping[str, Written]) -> None:
    mark = _mark(folder, rank)
    beside = mark.with_suffix(".part")
    beside.write_text(json.dumps({name: asdict(written) for name, written in files.items()}), encoding="utf-8")
    beside.rename(mark)


def _wait_for_mark(under_way: _UnderWay, rank: int) -> dict[str, Written]:
    mark, pause_s = _mark(under_way.beside, rank), _POLL_S[0]
    while not mark.exists():
        if under_way.abandoned.wait(pause_s):
            raise _AbandonedError
        pause_s = min(2 * pause_s, _POLL_S[1])
    return {name: Written(**entry) for name, entry in json.loads(mark.read_text(encoding="utf-8")).items()}


def _cannot(folder: Path, problem: BaseException) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} cannot be written: {problem}")
