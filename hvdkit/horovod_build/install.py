"""Installs a wheel with pip, so that an earlier Horovod stays as it was unless the new one is there whole."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.process import uninterruptible
from hvdkit.horovod_build.record import RECORD


def check_installable() -> None:
    """Raise BuildError where pip would refuse to install, so that nobody waits minutes to be told."""
    managed = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists() and sys.prefix == sys.base_prefix
    if managed and not os.environ.get("PIP_BREAK_SYSTEM_PACKAGES"):
        raise BuildError(f"{sys.prefix} belongs to the operating system, and pip may not install into it; make a "
                         "virtual environment (`python -m venv`) and build there")  # fmt: skip


def install_wheel(wheel: Path) -> None:
    """Install `wheel` in this environment, in place of any other Horovod; needs no network.

    Raises BuildError if that fails; then an earlier Horovod is back in its place, or nothing of the new one is left.
    """
    needed = 2 * _unpacked_bytes(wheel)
    place = Path(sysconfig.get_path("purelib"))
    if place.is_dir() and shutil.disk_usage(place).free < needed:
        raise BuildError(f"{place} has {shutil.disk_usage(place).free // 2**20} MB free, and installing Horovod needs "
                         f"{needed // 2**20}; free some space and run this again: the wheel is kept")  # fmt: skip
    had_another = _installed_record() is not None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall",
               "--disable-pip-version-check", str(wheel)]  # fmt: skip
    # pip takes back what it did when it fails, but not when it is interrupted.
    with uninterruptible():
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode and not had_another:
            _remove_remains(wheel, place)
    if result.returncode:
        raise BuildError(f"pip could not install Horovod: {result.stderr.strip()}\nThe finished wheel is kept: {wheel}")
    with zipfile.ZipFile(wheel) as archive:
        expected = archive.read(RECORD)
    if _installed_record() != expected:
        raise BuildError(f"Horovod was installed, but Python finds another one first ({_origin()}); uninstall that one "
                         "or take it off PYTHONPATH")  # fmt: skip


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(item.file_size for item in archive.infolist())


def _origin() -> str | None:
    """Where a fresh interpreter finds Horovod; this one may remember where it was before."""
    code = "import importlib.util as u; s = u.find_spec('horovod'); print((s and s.origin) or '')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    return result.stdout.strip() or None


def _installed_record() -> bytes | None:
    """The record of the installed Horovod (empty if hvdkit did not build it), or None without one."""
    origin = _origin()
    if origin is None:
        return None
    record = Path(origin).parent.parent / RECORD
    return record.read_bytes() if record.exists() else b""


def _remove_remains(wheel: Path, place: Path) -> None:
    """What a failed first installation wrote: pip leaves it."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    for top in tops:
        shutil.rmtree(place / top, ignore_errors=True)
    Path(sysconfig.get_path("scripts"), "horovodrun").unlink(missing_ok=True)
