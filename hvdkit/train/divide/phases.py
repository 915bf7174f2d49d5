"""What a run of `--divide` that goes on finds done: models that are saved are not trained again.

Every phase of training ends with a model that is complete in its folder or absent (`start`, `submodels/NAME`, `joint`),
and draws its random numbers anew. So a run that goes on ends as if it had never been interrupted.
"""

from collections.abc import Sequence
from pathlib import Path

from hvdkit.errors import ConfigError
from hvdkit.runtime import World, launch_info, share_object, together
from hvdkit.train.config import TrainConfig, parse
from hvdkit.train.run_folder import make_run_folder

CONFIG = "config.yaml"
_FREE = {"merge_rules", "joint", "eval_every", "eval_batches", "log_every", "check_every", "hang_timeout", "threads"}
"""Options that change nothing of what is trained."""


def open_run_folder(world: World, config: TrainConfig) -> Path:
    """The folder of this run, made or gone on in. Collective.

    Raises ConfigError on all ranks if there is none to go on in, or with other options than it was begun with.
    """
    if config.resume:
        folder = Path(config.resume)
    else:
        folder = make_run_folder(world, config.out, is_ours=launch_info().attempt > 0)
    together(world, lambda: _check_as_then(config, folder))
    return folder


def saved_models(world: World, folder: Path, names: Sequence[str]) -> set[str]:
    """Which of `names`, folders in `folder` that are complete or absent, are there already. Collective."""
    return share_object(world, {name for name in names if (folder / name).is_dir()})


def _check_as_then(config: TrainConfig, folder: Path) -> None:
    path = folder / CONFIG
    if not path.is_file():
        if config.resume:
            raise ConfigError(f"--resume {folder} is no run of --divide: it has no {CONFIG}")
        return
    then, now = parse(["--resume", str(folder)], defaults=path).saved_values(), config.saved_values()
    changed = [name for name in now if name not in _FREE and now[name] != then.get(name)]
    if changed:
        words = ", ".join(f"--{name.replace('_', '-')} {now[name]} (was {then.get(name)})" for name in changed)
        raise ConfigError(f"{folder} was begun with other options: {words}; give the same, or begin another run")
