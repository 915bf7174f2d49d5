"""Builds the wheel with visible progress, keeps it in the cache, and installs it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.edits import EDITS, apply_edits
from hvdkit.horovod_build.source import SHA256, fetch_source, unpack
from hvdkit.horovod_build.toolchain import Toolchain, mpi_environment

RECORD = "horovod/hvdkit_build.json"
"""Where a built wheel says what it was built with."""

_NEEDED_MB = 1500
_PERCENT = re.compile(r"^\[ *(\d+)%\]")


def cache_folder() -> Path:
    """Where archives, wheels and logs are kept: $XDG_CACHE_HOME/hvdkit or ~/.cache/hvdkit."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hvdkit"


def cache_key(toolchain: Toolchain) -> str:
    """Changes with everything that changes the wheel: the release, the edits, and the whole tool chain."""
    content = json.dumps([SHA256, [repr(edit) for edit in EDITS], toolchain.describe()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def get_wheel(toolchain: Toolchain, say: Callable[[str], None], source: Path | None = None) -> Path:
    """The wheel for `toolchain`: from the cache, or built now. Raises BuildError; then nothing is left behind
    but the log."""
    shelf = cache_folder() / "wheels" / cache_key(toolchain)
    cached = sorted(shelf.glob("horovod-*.whl"))
    if cached:
        say(f"found in the cache: {cached[0]}")
        return cached[0]
    archive = fetch_source(cache_folder() / "sources", source)
    say(f"source: {archive.name}, sha256 as released")
    log = cache_folder() / "logs" / f"build-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hvdkit-build-") as folder:
        free_mb = shutil.disk_usage(folder).free // 2**20
        if free_mb < _NEEDED_MB:
            raise BuildError(f"{folder} has {free_mb} MB free, the build needs about {_NEEDED_MB}; free some, or set "
                             "TMPDIR to a folder on a larger disk")  # fmt: skip
        root = unpack(archive, Path(folder))
        apply_edits(root)
        say(f"applied {len(EDITS)} edits; compiling (3 to 10 minutes), log: {log}")
        built = _compile(root, Path(folder) / "wheel", toolchain, log, say)
        _add_record(built, toolchain)
        shelf.mkdir(parents=True, exist_ok=True)
        beside = shelf / f".{os.getpid()}.part"
        try:
            shutil.copyfile(built, beside)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise BuildError(f"cannot keep the wheel in {shelf} ({error}); free some space") from None
        final = shelf / built.name
        beside.rename(final)
    return final


def install_wheel(wheel: Path) -> None:
    """Install `wheel` in this environment, in place of any other Horovod; needs no network."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall",
               str(wheel)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"pip could not install {wheel}: {result.stderr.strip()}")


def uninstall() -> None:
    """Remove Horovod from this environment."""
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "horovod"], check=False)


def _compile(root: Path, out: Path, toolchain: Toolchain, log: Path, say: Callable[[str], None]) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--verbose",
               "--wheel-dir", str(out), str(root)]  # fmt: skip
    with log.open("w", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_build_environment(root, toolchain),
        )
        assert process.stdout is not None
        started = said = time.monotonic()
        errors: list[str] = []
        percent = "0"
        for line in process.stdout:
            file.write(line)
            text = line.strip()
            found = _PERCENT.match(text)
            percent = found[1] if found else percent
            if re.search(r"\b(fatal )?error\b[: ]|No space left|ModuleNotFoundError", text) and len(errors) < 3:
                errors.append(text)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                say(f"compiling Horovod: {percent}%, {said - started:.0f} s")
        process.wait()
    wheels = sorted(out.glob("horovod-*.whl")) if out.exists() else []
    if process.returncode or not wheels:
        first = errors[0] if errors else "no error line found"
        raise BuildError(f"Horovod did not compile: {first}. The whole log: {log}")
    return wheels[0]


def _build_environment(root: Path, toolchain: Toolchain) -> dict[str, str]:
    env = mpi_environment(Path(toolchain.mpi_bin))
    for name in [name for name in env if name.startswith(("HOROVOD_", "CMAKE_"))]:
        del env[name]
    env |= {
        "HOROVOD_CMAKE": toolchain.cmake,
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "CXXFLAGS": f"{env.get('CXXFLAGS', '')} -ffile-prefix-map={root}=horovod".strip(),
        "MAKEFLAGS": env.get("MAKEFLAGS") or f"-j{_jobs()}",
    }
    if toolchain.gpu == "nccl":
        env |= {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": "SHARED"}
        env["HOROVOD_CUDA_HOME"] = env["CUDA_HOME"] = toolchain.cuda_home or ""
        env["HOROVOD_NCCL_INCLUDE"] = toolchain.nccl_include or ""
        env["HOROVOD_NCCL_LIB"] = toolchain.nccl_lib or ""
    else:
        env["HVDKIT_WITHOUT_CUDA"] = "1"
    return env


def _jobs() -> int:
    """As many compilers as there are cores, but 2 GB of memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores, int(memory_gb / 2)))


def _add_record(wheel: Path, toolchain: Toolchain) -> None:
    record = {"toolchain": toolchain.describe(), "edits": [f"{edit.file}: {edit.why}" for edit in EDITS]}
    content = json.dumps(record, indent=1).encode()
    digest = hashlib.sha256(content).digest()
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(RECORD, content)
    _rewrite_record_list(wheel, digest, len(content))


def _rewrite_record_list(wheel: Path, digest: bytes, length: int) -> None:
    """Name the added file in the wheel's RECORD, so that uninstalling removes it too."""
    import base64

    text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    beside = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                content = f"{RECORD},sha256={text},{length}\n".encode() + content
            new.writestr(item, content)
    beside.rename(wheel)
