"""The checkpoint that a run goes on from, and how the run becomes what it was.

On as many ranks as saved it the run goes on to the bit. On another number of ranks every sample of the epoch still
comes once, since the place in the data counts samples over all ranks; sums are rounded in another order, and dropout is
drawn anew.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdkit.checkpoint import list_checkpoints, open_newest, restore_random_state, set_aside
from hvdkit.checkpoint.manifest import versions
from hvdkit.data import Position
from hvdkit.errors import CheckpointError, HvdkitError
from hvdkit.runtime import World
from hvdkit.train.aggregation import Aggregation, SavedState
from hvdkit.train.config import TrainConfig
from hvdkit.train.loop import Loop

_FREE = {
    "steps", "eval_every", "eval_batches", "log_every", "checkpoint_every", "checkpoint_async", "keep", "keep_best",
    "tensorboard", "sample_prompt", "sample_tokens", "threads", "check_every", "hang_timeout", "init_from",
}  # fmt: skip
"""Options that change nothing of what a step does."""

Say = Callable[[str], None]


class Resumed:
    """The newest whole checkpoint of the run folder `path`, or that in `path`. Collective.

    `say` is told what a user should know. Raises CheckpointError on all ranks if there is none.
    """

    def __init__(self, world: World, path: str | Path, say: Say) -> None:
        self._world, self.say = world, say
        self._is_chosen_by_us = (Path(path) / "checkpoints").is_dir()
        self.checkpoint = open_newest(world, Path(path).absolute(), say)
        self._common = self.checkpoint.common()
        lacking = {"step", "position", "aggregation"} - self._common.keys()
        if lacking:
            raise CheckpointError(
                f"{self.folder} has no {min(lacking)}: it is not of a run of hvdkit.train; its own program reads it"
            )
        self.step: int = self._common["step"]
        self.position = Position(*self._common["position"])

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return self.checkpoint.folder

    def run_folder(self) -> Path:
        """The run to go on in, with no later checkpoints in its way. Not collective, but for all ranks alike.

        Raises CheckpointError if the checkpoint was named, and is a copy or not the newest of its run.
        """
        folder = self.folder
        run = folder.parent.parent
        found = list_checkpoints(folder.parent)
        if folder.parent.name != "checkpoints" or folder not in found:
            raise CheckpointError(f"{folder} is no checkpoint in the folder of a run: name a new folder with --out")
        newest = found[-1]
        if newest != folder and not self._is_chosen_by_us:
            raise CheckpointError(
                f"{run} went on to {newest.name} after {folder.name}: resume that, or name a new folder with --out"
            )
        return run

    def clear_the_way(self) -> None:
        """Rename the damaged checkpoints that are newer. On one rank, when all know the run's folder."""
        set_aside(self.folder.parent, self.folder)

    def changes(self, config: TrainConfig) -> list[str]:
        """What is not as it was when the checkpoint was saved, in lines."""
        manifest, now = self.checkpoint.manifest, config.saved_values()
        options = [
            f"--{name.replace('_', '-')} {now[name]} (was {manifest.config[name]})"
            for name in now
            if name in manifest.config and name not in _FREE and now[name] != manifest.config[name]
        ]
        software = [
            f"{name} {version} (was {manifest.versions[name]})"
            for name, version in versions().items()
            if manifest.versions.get(name, version) != version
        ]
        return [f"not as when it was saved: {', '.join(found)}" for found in (options, software) if found]

    def choose_as_then(self) -> None:
        """Let collectives choose by the saved run's measurements, so that they add up in the same order. Collective."""
        from hvdkit.collectives import choose_as_saved

        if not choose_as_saved(self._world, self._common.get("collectives")):
            self.say("no saved choice of algorithms fits these ranks: they are chosen anew, by a probe")

    def restore(self, aggregation: Aggregation, loop: Loop) -> None:
        """Give the optimizer, the loop and the random generators their state. Collective."""
        checkpoint, world = self.checkpoint, self._world
        size = checkpoint.manifest.world_size
        state: dict[str, Any] = self._common.pop("aggregation")  # in use, cut perhaps, and not needed twice

        read = functools.lru_cache(maxsize=1)(checkpoint.own)  # this rank's is asked for more than once

        def own(rank: int) -> dict[str, Any]:
            found: dict[str, Any] = read(rank)["aggregation"]
            return found

        try:
            aggregation.restore(SavedState(state, own, size, world.rank, world.size))
        except (ValueError, KeyError, HvdkitError) as error:
            raise CheckpointError(f"{checkpoint.folder}: its optimizer does not fit this run: {error}") from error
        if size == world.size:
            mine = read(world.rank)
            loop.restore(mine["loop"])
            restore_random_state(world.device, mine["random"])
        else:
            self.say(f"saved by {size} ranks, continued by {world.size}: every sample once, dropout drawn anew")
