"""A small disk of a case's own, so that it can be filled: a tmpfs, which needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = "48m"


def why_not() -> str:
    """Why there can be none here; empty if there can."""
    return "" if os.geteuid() == 0 else "a disk of one's own needs root"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """`folder`, made, with a file system of its own until the block ends."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        # Lazily, since somebody may still look at it.
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)
