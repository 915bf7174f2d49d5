"""Remembers that an installed Horovod has not been checked yet (`--verify later`); the first `init()` asks."""

import importlib.metadata
import importlib.util
from contextlib import suppress
from pathlib import Path

_MARKER = "hvdkit_unverified"


def mark_unverified() -> None:
    """Leave the check to the first `init()` with more than one rank."""
    folder = _installed_folder()
    if folder is None or (folder / _MARKER).exists():
        return
    (folder / _MARKER).touch()
    # pip removes what RECORD names: without this line the marker would outlive Horovod and look like a package.
    record = importlib.metadata.distribution("horovod").locate_file(
        f"horovod-{importlib.metadata.version('horovod')}.dist-info/RECORD"
    )
    with Path(str(record)).open("a", encoding="utf-8") as file:
        file.write(f"{folder.name}/{_MARKER},,\n")


def is_unverified() -> bool:
    """Whether the check was left for later; looks at one file and imports nothing."""
    folder = _installed_folder()
    return folder is not None and (folder / _MARKER).exists()


def mark_verified() -> None:
    """Ranks have worked together: nothing is left to check. Does nothing where the installation cannot be written."""
    folder = _installed_folder()
    if folder is not None:
        with suppress(OSError):
            (folder / _MARKER).unlink(missing_ok=True)


def _installed_folder() -> Path | None:
    spec = importlib.util.find_spec("horovod")
    return Path(spec.origin).parent if spec and spec.origin else None
