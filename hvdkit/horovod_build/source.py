"""Gets Horovod's source release and checks that it is the one."""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

from hvdkit.errors import BuildError

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
ARCHIVE = f"horovod-{VERSION}.tar.gz"


def fetch_source(folder: Path, given: Path | None = None) -> Path:
    """The path of the checked source archive: `given`, or the one in `folder`, where pip downloads it if needed.

    Raises BuildError without network, for a missing file, and for any file that is not the release.
    """
    if given is not None:
        if not given.is_file():
            raise BuildError(f"--source {given}: there is no such file; get it with `pip download --no-deps "
                             f"--no-binary horovod horovod=={VERSION}` on a machine with a network")  # fmt: skip
        check_hash(given)
        return given
    archive = folder / ARCHIVE
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "horovod",
                   "--dest", str(folder), f"horovod=={VERSION}"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not archive.exists():
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BuildError(
                f"pip could not download Horovod {VERSION} ({reason}); is there a network? On a machine without one, "
                f"copy {ARCHIVE} there and pass it with --source FILE"
            )
    try:
        check_hash(archive)
    except BuildError:
        archive.unlink()
        raise
    return archive


def check_hash(archive: Path) -> None:
    """Raise BuildError unless `archive` is Horovod's release, byte for byte."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise BuildError(
            f"{archive} is not Horovod {VERSION} as released: its sha256 is {found}, expected {SHA256}; "
            "delete it and try again, or get it from another place"
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the checked `archive` below `folder`; returns the source's root."""
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:  # before Python 3.10.12; the archive's hash has been checked
                tar.extractall(folder)
    except OSError as error:
        raise BuildError(f"cannot unpack {archive} in {folder} ({error}); is the disk full?") from None
    return folder / f"horovod-{VERSION}"
