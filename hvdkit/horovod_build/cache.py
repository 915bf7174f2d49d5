"""Keeps finished wheels by everything that changes them, and the record inside a wheel that says what it was."""

import base64
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.edits import EDITS
from hvdkit.horovod_build.record import RECORD
from hvdkit.horovod_build.source import SHA256
from hvdkit.horovod_build.toolchain import Toolchain

_NEEDED_MB = 100


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/hvdkit or ~/.cache/hvdkit."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hvdkit"


def open_cache() -> Path:
    """The cache folder with its places for archives, wheels and logs, made if need be.

    Raises BuildError where it cannot be written, or has no room for a wheel.
    """
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    try:
        folder = cache_folder()
        for name in ("sources", "wheels", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise BuildError(f"the cache folder cannot be written ({error}); {remedy}") from None
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < _NEEDED_MB:
        raise BuildError(f"the cache folder {folder} has {free_mb} MB free and needs {_NEEDED_MB}; free some, or "
                         "set XDG_CACHE_HOME to a folder on a larger disk")  # fmt: skip
    return folder


def cache_key(toolchain: Toolchain) -> str:
    """Changes with everything that changes the wheel: the release, the edits, and the whole tool chain."""
    content = json.dumps([SHA256, [repr(edit) for edit in EDITS], toolchain.describe()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def find_wheel(cache: Path, toolchain: Toolchain) -> Path | None:
    """The finished wheel for `toolchain`, if there is one in the cache and it is whole."""
    wheels = sorted((cache / "wheels" / cache_key(toolchain)).glob("horovod-*.whl"))
    return next((wheel for wheel in wheels if zipfile.is_zipfile(wheel)), None)


def keep_wheel(cache: Path, toolchain: Toolchain, built: Path) -> Path:
    """Copy the fresh wheel `built` into the cache, with the record of what it was built with; returns its place."""
    shelf = cache / "wheels" / cache_key(toolchain)
    beside = shelf / f".{os.getpid()}.part"
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        _copy_with_record(built, beside, toolchain)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        return beside.rename(shelf / built.name)
    except OSError as error:
        raise BuildError(f"cannot keep the wheel in {shelf} ({error}); free some space, or set XDG_CACHE_HOME to a "
                         "folder on a larger disk") from None  # fmt: skip
    finally:
        beside.unlink(missing_ok=True)


def _copy_with_record(wheel: Path, copy: Path, toolchain: Toolchain) -> None:
    edits = [f"{edit.file}: {edit.why}" for edit in EDITS]
    content = json.dumps({"toolchain": toolchain.describe(), "edits": edits}, indent=1).encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):  # so that uninstalling removes the record too
                data += f"{RECORD},sha256={digest},{len(content)}\n".encode()
            new.writestr(item, data)
        new.writestr(RECORD, content)
