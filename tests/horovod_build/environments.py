"""Small virtual environments to build and install in: they see the session's packages, but not its Horovod."""

import csv
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs import ROOT, run_program

SITE = Path(sysconfig.get_path("purelib"))
TOOLS = (
    *("sh", "bash", "sed", "grep", "uname", "rm", "cat", "ls"),
    *("gcc", "g++", "cc", "c++", "as", "ld", "make", "cmake"),
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment in `folder`; nothing that happens in it touches another."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """`python WORDS...` in it."""
        return run_program([self.python, *words], env=env, timeout_s=timeout_s, cwd=self.folder)

    def build(
        self, *options: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """`hvdkit horovod build OPTIONS...` in it."""
        return self.run("-m", "hvdkit.horovod_build", *options, env=env, timeout_s=timeout_s)

    def command(self, *options: str | Path) -> list[str]:
        """The command line of `build`, for those who start it themselves."""
        return [str(self.python), "-m", "hvdkit.horovod_build", *map(str, options)]

    def horovod_version(self) -> str | None:
        """What `import horovod` says in it, or None."""
        result = self.run("-c", "import horovod; print(horovod.__version__)")
        return result.stdout.strip() if result.returncode == 0 else None

    def leftovers(self) -> list[str]:
        """Names in site-packages that are, or were, of Horovod (pip puts aside what it replaces as `~orovod`)."""
        return sorted(path.name for path in self.site.iterdir() if "orovod" in path.name)


def make_environment(folder: Path, without: tuple[str, ...] = ()) -> Environment:
    """A new environment that sees hvdkit and the session's packages, except Horovod and those named `without`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    links = folder / "session-packages"
    links.mkdir()
    for path in SITE.iterdir():
        if path.suffix != ".pth" and path.name.split("-")[0] not in ("horovod", "hvdkit", "__pycache__", *without):
            (links / path.name).symlink_to(path)
    environment = Environment(folder)
    (environment.site / "session.pth").write_text(f"{links}\n{ROOT}\n")
    return environment


def mpi_folder() -> str:
    """Where the MPI is that the session's Horovod was built with, as `--mpi` takes it."""
    record = json.loads((SITE / "horovod" / "hvdkit_build.json").read_text(encoding="utf-8"))
    return str(record["toolchain"]["mpi"]["folder"])


def pack_installed_horovod(folder: Path) -> Path:
    """The session's Horovod as pip built it: a wheel of the files that its installation lists."""
    info = next(SITE.glob("horovod-*.dist-info"))
    tag = next(line.split(": ")[1] for line in (info / "WHEEL").read_text().splitlines() if line.startswith("Tag: "))
    version = info.name.removesuffix(".dist-info")
    wheel = folder / f"{version}-{tag}.whl"
    skipped = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD", "hvdkit_build.json", "hvdkit_unverified")
    with zipfile.ZipFile(wheel, "w") as archive:
        kept = []
        for name, digest, size in csv.reader((info / "RECORD").read_text().splitlines()):
            if name.startswith("..") or "__pycache__" in name or Path(name).name in skipped or not digest:
                continue
            archive.write(SITE / name, name)
            kept.append(f"{name},{digest},{size}\n")
        archive.writestr(f"{info.name}/RECORD", "".join(kept) + f"{info.name}/RECORD,,\n")
    return wheel


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own at `folder`, in memory; skips the test where one cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def tools_path(folder: Path, without: tuple[str, ...] = ()) -> str:
    """A PATH with the tools of a build and no others, except those named `without`."""
    folder.mkdir()
    for name in TOOLS:
        found = next((p for p in map(Path, os.get_exec_path()) if (p / name).exists()), None)
        if found is not None and name not in without:
            (folder / name).symlink_to(found / name)
    return str(folder)


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


def build_environ(tmp_path: Path, **more: str) -> dict[str, str]:
    """Variables that keep a build's cache and temporary files below `tmp_path`."""
    for name in ("cache", "tmp"):
        (tmp_path / name).mkdir(exist_ok=True)
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp"), **more}
