"""Compiles the wheel in a temporary folder, with visible progress and a log, and explains a failure in a sentence."""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.cache import find_wheel, keep_wheel
from hvdkit.horovod_build.edits import EDITS, apply_edits
from hvdkit.horovod_build.mpi import mpi_environment
from hvdkit.horovod_build.process import process_group
from hvdkit.horovod_build.progress import Progress
from hvdkit.horovod_build.source import fetch_source, unpack
from hvdkit.horovod_build.toolchain import PASSED_ON, Toolchain

_NEEDED_MB = 600  # up to 410 were used
_FULL_MB = 20
_TICK_S = 0.5
_PERCENT = re.compile(r"^\s*\[ *(\d+)%\]", re.MULTILINE)
_ERRORS = (
    re.compile(r"^.*(?:\S: (?:fatal )?error: |undefined reference|ModuleNotFoundError).*$", re.MULTILINE),
    re.compile(r"^ *CMake Error(?:.*\n){4}", re.MULTILINE),  # where, and what follows it
    re.compile(r"^.*(?:Error|ERROR): .*$", re.MULTILINE),
)
_DISK_FULL = ("No space left on device", "Disk quota exceeded")
_KEPT_LOGS = 10


def get_wheel(
    cache: Path,
    toolchain: Toolchain,
    say: Callable[[str], None],
    progress: Progress,
    source: Path | None = None,
    rebuild: bool = False,
) -> Path:
    """The wheel for `toolchain`: from the cache, or built now. Raises BuildError; only the log is then left behind."""
    if source is not None:
        fetch_source(cache / "sources", source)  # a wrong file is told even where nothing needs it
    cached = None if rebuild else find_wheel(cache, toolchain)
    if cached is not None:
        say(f"found in the cache: {cached}")
        return cached
    archive = fetch_source(cache / "sources", source)
    say(f"source: {archive.name}, sha256 as released")
    log = _new_log(cache / "logs")
    with tempfile.TemporaryDirectory(prefix="hvdkit-build-") as name:
        folder = Path(name).resolve()
        free_mb = shutil.disk_usage(folder).free // 2**20
        if free_mb < _NEEDED_MB:
            raise BuildError(f"{folder.parent} has {free_mb} MB free, the build needs {_NEEDED_MB}; free some, or set "
                             "TMPDIR to a folder on a larger disk")  # fmt: skip
        root = unpack(archive, folder)
        apply_edits(root)
        say(f"applied {len(EDITS)} edits; compiling (3 to 10 minutes), log: {log}")
        built = _compile(root, folder / "wheel", toolchain, log, progress)
        return keep_wheel(cache, toolchain, built)


def build_environment(root: Path, toolchain: Toolchain) -> dict[str, str]:
    """The environment in which Horovod's setup.py runs: what was found and nothing that contradicts it."""
    env = mpi_environment(toolchain.mpi.folder)
    # CCL_ROOT would link Intel's oneCCL, MPI_ROOT lead CMake to another MPI than the chosen one.
    foreign = ("CCL_ROOT", "MPI_ROOT")
    for name in list(env):
        if name in foreign or (name.startswith(("HOROVOD_", "CMAKE_")) and name not in PASSED_ON):
            del env[name]
    env |= {
        "CXX": toolchain.cxx,
        "CC": toolchain.cc,
        # Keeps the temporary folder's name out of the library.
        "CXXFLAGS": f"{env.get('CXXFLAGS', '')} -ffile-prefix-map={root}=horovod".strip(),
        "MAKEFLAGS": env.get("MAKEFLAGS") or f"-j{_jobs()}",
        "MPI_HOME": str(toolchain.mpi.folder.parent),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(root.parent),  # so that what pip leaves when it is stopped goes with the rest
        "HOROVOD_CMAKE": toolchain.cmake_program,
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HVDKIT_CXX_STANDARD": str(toolchain.torch.cxx_standard),
    }
    if toolchain.cuda is None:
        return env | {"HVDKIT_WITHOUT_GPU": "1", "HOROVOD_WITHOUT_NVTX": "1"}
    return env | {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_CUDA_HOME": toolchain.cuda.home,
        "CUDA_HOME": toolchain.cuda.home,
        "HOROVOD_NCCL_INCLUDE": toolchain.cuda.nccl_include,
        "HOROVOD_NCCL_LIB": toolchain.cuda.nccl_lib,
    }


def _compile(root: Path, out: Path, toolchain: Toolchain, log: Path, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--verbose",
               "--disable-pip-version-check", "--wheel-dir", str(out), str(root)]  # fmt: skip
    env = build_environment(root, toolchain)
    with (
        log.open("w", encoding="utf-8") as output,
        log.open(encoding="utf-8", errors="replace") as written,
        progress,
        process_group(command, output, env, cwd=root) as process,
    ):
        percent, activity = 0, "configuring"
        while process.poll() is None:
            found = _PERCENT.findall(written.read())
            if found:
                percent = int(found[-1])
                activity = "compiling" if percent < 100 else "linking and packing"
            progress.show(percent, activity)
            time.sleep(_TICK_S)
    wheels = sorted(out.glob("horovod-*.whl")) if out.exists() else []
    if process.returncode or not wheels:
        raise BuildError(f"{explain_failure(log)}. The whole log: {log}")
    return wheels[0]


def explain_failure(log: Path) -> str:
    """Why the build that wrote `log` failed, with the remedy, in a sentence; asked while its files are still there."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for place, variable in ((tempfile.gettempdir(), "TMPDIR"), (str(log.parent), "XDG_CACHE_HOME")):
        if shutil.disk_usage(place).free < _FULL_MB * 2**20:
            return (f"the disk of {place} ran full; free some space, or set {variable} to a folder on a larger disk, "
                    "and run this again")  # fmt: skip
    if any(sign in text for sign in _DISK_FULL):
        return (
            "a disk or quota ran full; free some space, or set TMPDIR to a folder on a larger disk, and run this again"
        )
    if re.search(r"Killed signal terminated program|internal compiler error: Killed|\bKilled\b", text):
        return "the compiler was killed, probably for want of memory; run this again with MAKEFLAGS=-j1"
    found = next((match[0] for match in (errors.search(text) for errors in _ERRORS) if match), None)
    return f"Horovod did not compile: {' '.join(found.split()) if found else 'it ended without an error line'}"


def _new_log(folder: Path) -> Path:
    for old in sorted(folder.glob("build-*.log"))[: 1 - _KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"build-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def _jobs() -> int:
    """As many compilers as there are cores, but 2 GB of memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores, int(memory_gb / 2)))
