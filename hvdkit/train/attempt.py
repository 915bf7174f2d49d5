"""What a configuration means in this attempt of a job that `hvdkit run --max-restarts` starts again after a failure.

The run's folder is the same in all attempts: `--out`, or runs/NAME by the name of the job. From the second attempt on
the run goes on there from its newest checkpoint, or with `--divide` from the models that it has saved; where there is
nothing yet, it begins anew.
"""

from dataclasses import replace
from pathlib import Path

from hvdkit.checkpoint import list_checkpoints
from hvdkit.runtime import LaunchInfo
from hvdkit.train.config import TrainConfig


def for_attempt(config: TrainConfig, launch: LaunchInfo) -> TrainConfig:
    """The configuration to use. Not collective; ranks that see one file system get the same."""
    if launch.run_name is None:
        return config
    if config.resume is not None and config.out is None:  # in place
        has_gone_on = launch.attempt and config.divide is None
        return replace(config, resume=str(_run_folder(Path(config.resume)))) if has_gone_on else config
    out = config.out or str(Path("runs") / launch.run_name)
    if launch.attempt and list_checkpoints(Path(out) / "checkpoints"):
        return replace(config, resume=out, out=None)
    return replace(config, out=out)


def _run_folder(path: Path) -> Path:
    """Of a run folder, or of a checkpoint in one."""
    return path.absolute().parent.parent if path.absolute().parent.name == "checkpoints" else path
