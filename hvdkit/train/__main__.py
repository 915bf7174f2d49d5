"""`python -m hvdkit.train`, also `hvdkit train`: started once per rank by horovodrun, mpirun, srun or `hvdkit run`."""

import contextlib
import os
import sys
from pathlib import Path

from hvdkit.errors import HvdkitError
from hvdkit.runtime import RESUME_STATUS, die, end_job_on_error, end_with, init, launch_info, limit_hangs
from hvdkit.train.attempt import for_attempt
from hvdkit.train.config import TrainConfig, parse
from hvdkit.train.ending import EndedEarlyError, EndRequest
from hvdkit.train.run_folder import saved_config

DEFAULT_HANG_TIMEOUT_S = 60


def main(argv: list[str] | None = None) -> int:
    """Train; returns the exit status. Every fault ends all ranks with one message."""
    words = sys.argv[1:] if argv is None else argv
    config = for_attempt(_read_quietly(words), launch_info())
    limit_hangs(config.hang_timeout, default_s=DEFAULT_HANG_TIMEOUT_S)
    end = EndRequest()
    with end_job_on_error(), end.heeded() if config.divide is None else contextlib.nullcontext():
        # Averaging gradients within a node takes a process set per node.
        world = init(process_sets="dynamic" if config.local_level == "nodes" else None)
        if config.divide is None:
            from hvdkit.train.job import Job

            try:
                Job(world, config, end=end).run()
            except EndedEarlyError:
                end_with(RESUME_STATUS)
        else:
            from hvdkit.train.divide import DivideJob

            DivideJob(world, config).run()
    return 0


def read_configuration(words: list[str]) -> TrainConfig:
    """The configuration that a command line means; what is resumed gives the defaults. Raises ConfigError."""
    config = parse(words)
    if config.resume is None:
        return config
    saved = saved_config(Path(config.resume))
    config = parse(words, defaults=saved)
    config.check_rounds(vars(parse(["--resume", str(config.resume)], defaults=saved)))
    return config


def _read_quietly(words: list[str]) -> TrainConfig:
    # Help, too, is printed by one rank only.
    silence = open(os.devnull, "w") if launch_info().rank else None  # noqa: SIM115, PTH123
    with contextlib.redirect_stdout(silence or sys.stdout):
        try:
            return read_configuration(words)
        except HvdkitError as error:
            die(str(error), status=2)


if __name__ == "__main__":
    sys.exit(main())
