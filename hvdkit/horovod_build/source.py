"""Gets Horovod's source release and checks that it is the one."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
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
        check_hash(given, "get the file from another place")
        return given
    archive = folder / ARCHIVE
    if archive.exists():
        try:
            check_hash(archive, "")
            return archive
        except BuildError:
            archive.unlink()  # damaged since it was fetched
    _download(archive)
    return archive


def check_hash(archive: Path, remedy: str) -> None:
    """Raise BuildError unless `archive` is Horovod's release, byte for byte."""
    try:
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise BuildError(f"{archive} cannot be read ({error})") from None
    if found != SHA256:
        raise BuildError(
            f"{archive} is not Horovod {VERSION} as released: its sha256 is {found}, expected {SHA256}; {remedy}"
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
        raise BuildError(f"cannot unpack {archive} in {folder} ({error}); free some space, or set TMPDIR to a folder "
                         "on a larger disk") from None  # fmt: skip
    return folder / f"horovod-{VERSION}"


def _download(archive: Path) -> None:
    """Have pip fetch the release; it checks the hash before it looks inside."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=archive.parent) as name:
        requirements = Path(name, "requirements.txt")
        requirements.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-binary", "horovod", "--no-build-isolation", "--require-hashes", "--dest", name,
                   "--requirement", str(requirements)]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(name, ARCHIVE)
        if result.returncode or not fetched.exists():
            raise BuildError(_why_not_downloaded(result.stderr))
        check_hash(
            fetched, "the package index served another file; get the archive from PyPI and pass it with --source"
        )
        fetched.rename(archive)


def _why_not_downloaded(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "DO NOT MATCH THE HASHES" in said:
        got = next((line for line in lines if line.startswith("Got")), "another sha256")
        return (f"the package index served a file that is not Horovod {VERSION} as released ({' '.join(got.split())}, "
                f"expected {SHA256}); get {ARCHIVE} from PyPI itself and pass it with --source FILE")  # fmt: skip
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no reason")
    return (f"pip could not download Horovod {VERSION} ({reason}); is there a network, or does your site have a "
            f"package index that pip must be told? On a machine without one, copy {ARCHIVE} there and pass it with "
            "--source FILE")  # fmt: skip
