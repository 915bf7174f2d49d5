"""The folder of a run: made once, never taken over from another run."""

import fcntl
import os
import time
import weakref
from pathlib import Path

from hvdkit.errors import ConfigError
from hvdkit.runtime import World, raise_together, share_object


def make_run_folder(world: World, out: str | None, *, is_ours: bool = False) -> Path:
    """Make the folder `out`, or runs/DATE-TIME, on rank 0 and return it on all. Collective.

    Raises ConfigError on all ranks if it exists with something in it, unless it `is_ours` (of an earlier attempt of
    this job), or cannot be written.
    """
    error: ConfigError | None = None
    folder = Path(out) if out else Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if world.is_root:
        try:
            if out is None:
                folder = _first_free(folder)
            elif not is_ours and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ConfigError(f"--out {out} exists: name another folder, or continue that run with --resume {out}")
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except ConfigError as problem:
            error = problem
        except OSError as problem:
            error = ConfigError(f"the run's folder {folder} cannot be written: {problem.strerror or problem}")
    raise_together(world, error)
    return share_object(world, folder)


class Claim:
    """That this process alone writes into the folder of a run, as long as it lives or until `release`.

    A lock on the folder itself, so that no file is left and a process that is killed lets go of it. Where the file
    system has no locks the claim holds nothing. Raises ConfigError if another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self.release = weakref.finalize(self, os.close, self._descriptor)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ConfigError(
                f"{folder} is being written by another job that still runs; wait for it, or end it"
            ) from None
        except OSError:
            pass


def saved_config(path: Path) -> Path | None:
    """The configuration file of a run, given the run's folder or that of a checkpoint or model in it; None if none."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


def _first_free(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
