"""`python -m hvdkit.train`, also `hvdkit train`: started once per rank by horovodrun, mpirun, srun or `hvdkit run`."""

import contextlib
import os
import sys
from pathlib import Path

from hvdkit.errors import HvdkitError
from hvdkit.runtime import die, end_job_on_error, init, launch_info
from hvdkit.train.config import TrainConfig, parse


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit status. Every fault ends all ranks with one message."""
    words = sys.argv[1:] if argv is None else argv
    config = _read(words)
    with end_job_on_error():
        world = init()
        from hvdkit.train.job import Job

        Job(world, config).run()
    return 0


def _read(words: list[str]) -> TrainConfig:
    # Help, too, is printed by one rank only.
    silence = open(os.devnull, "w") if launch_info().rank else None  # noqa: SIM115, PTH123
    with contextlib.redirect_stdout(silence or sys.stdout):
        try:
            config = parse(words)
            if config.resume is None:
                return config
            return parse(words, defaults=_saved_config(Path(config.resume)))
        except HvdkitError as error:
            die(str(error), status=2)


def _saved_config(resume: Path) -> Path | None:
    """The configuration that a run folder, or the run of a checkpoint, was started with."""
    for folder in (resume, resume.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


if __name__ == "__main__":
    sys.exit(main())
