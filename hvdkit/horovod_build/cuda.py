"""Finds the CUDA toolkit and the NCCL that fit the installed torch."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hvdkit.errors import BuildError

USUAL_HOME = "/usr/local/cuda"

_LIBRARY_FOLDERS = ("lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit and an NCCL."""

    home: str
    version: str
    """The toolkit's, such as `13.0`."""
    nccl_include: str
    nccl_lib: str
    nccl: str
    """NCCL's version, from its header."""


def find_cuda(torch_cuda: str | None) -> Cuda:
    """The toolkit and NCCL for a torch built with CUDA `torch_cuda`; raises BuildError naming what is missing."""
    if torch_cuda is None:
        raise BuildError(
            "--gpu nccl: the installed torch has no CUDA; install a CUDA build of torch, or use --gpu none"
        )
    home = _find_home(torch_cuda)
    version = _toolkit_version(home)
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        raise BuildError(
            f"the installed torch has CUDA {torch_cuda}, but the CUDA toolkit in {home} is {version}; set CUDA_HOME to "
            f"a toolkit {torch_cuda.split('.')[0]}.x, or install a torch for CUDA {version}, or pass --gpu none"
        )
    include, lib = _find_nccl(home, torch_cuda.split(".")[0])
    return Cuda(home, version, str(include), str(lib), _nccl_version(include / "nccl.h"))


def _find_home(torch_cuda: str) -> str:
    nvcc = shutil.which("nvcc")
    beside_nvcc = str(Path(nvcc).resolve().parents[1]) if nvcc else None
    homes = [os.environ.get("HOROVOD_CUDA_HOME"), os.environ.get("CUDA_HOME"), beside_nvcc, USUAL_HOME]
    # An nvcc alone may be a script that calls one elsewhere; a toolkit has the headers too.
    for home in homes:
        if home and Path(home, "bin", "nvcc").exists() and Path(home, "include", "cuda_runtime.h").exists():
            return home
    without = f" (the one in {beside_nvcc} has no headers beside it)" if beside_nvcc else ""
    raise BuildError(
        f"the installed torch has CUDA {torch_cuda}, but no CUDA toolkit (nvcc and cuda_runtime.h) was found{without}: "
        f"install CUDA {torch_cuda} or load its module and set CUDA_HOME; or install a CPU build of torch; or pass "
        "--gpu none to build Horovod for CPUs only (GPU tensors will then not be reduced)"
    )


def _toolkit_version(home: str) -> str:
    nvcc = str(Path(home) / "bin" / "nvcc")
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"`{nvcc} --version` does not run ({error}); install the CUDA toolkit again") from None
    found = re.search(r"release (\d+\.\d+)", text)
    if found is None:
        raise BuildError(f"`{nvcc} --version` does not tell its release; install the CUDA toolkit again")
    return found[1]


def _find_nccl(cuda_home: str, cuda_major: str) -> tuple[Path, Path]:
    """Folders of nccl.h and of the library: those that were named, else the one that torch loads, else the site's."""
    include, lib = os.environ.get("HOROVOD_NCCL_INCLUDE"), os.environ.get("HOROVOD_NCCL_LIB")
    if include and lib:
        if not (Path(include) / "nccl.h").exists() or not list(Path(lib).glob("libnccl*")):
            raise BuildError(f"HOROVOD_NCCL_INCLUDE={include} has no nccl.h, or HOROVOD_NCCL_LIB={lib} no libnccl; "
                             "correct them, or unset them to have NCCL looked for")  # fmt: skip
        return Path(include), Path(lib)
    home = os.environ.get("HOROVOD_NCCL_HOME")
    pip = _pip_nccl(cuda_major)
    bases = [Path(base) for base in (home, None if home else pip, cuda_home, "/usr", "/usr/local") if base]
    for base in bases:
        for libs in _LIBRARY_FOLDERS:
            if (base / "include" / "nccl.h").exists() and list((base / libs).glob("libnccl*")):
                return base / "include", base / libs
    raise BuildError("NCCL (nccl.h and libnccl) was not found: install it, or set HOROVOD_NCCL_HOME, "
                     f"or `pip install nvidia-nccl-cu{cuda_major}`, or pass --gpu none")  # fmt: skip


def _pip_nccl(cuda_major: str) -> Path | None:
    """pip's NCCL for this CUDA, which torch loads: two NCCLs in one process would be one too many."""
    try:
        distribution = importlib.metadata.distribution(f"nvidia-nccl-cu{cuda_major}")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file("nvidia/nccl")))


def _nccl_version(header: Path) -> str:
    text = header.read_text(encoding="utf-8", errors="replace")
    parts = [re.search(rf"#define\s+NCCL_{name}\s+(\d+)", text) for name in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part[1] if part else "?" for part in parts)
