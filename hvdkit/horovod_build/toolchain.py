"""Finds what Horovod is built with: Python's packages, torch, compilers, MPI, CMake, CUDA; says what is missing."""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.cuda import Cuda, find_cuda
from hvdkit.horovod_build.mpi import Mpi, check_mpi4py, find_mpi

MINIMUM_TORCH = (2, 1)
MINIMUM_CMAKE = (3, 13)

_COMPILER_REMEDY = "install one, for example Debian's g++ or your site's gcc module"

PASSED_ON = ("HOROVOD_BUILD_ARCH_FLAGS", "HOROVOD_BUILD_CUDA_CC_LIST", "HOROVOD_CPU_OPERATIONS")
"""Horovod's own build options that are handed on; hvdkit decides the others, so that they cannot contradict it."""

_FLAGS = (
    *("CC", "CXX", "AR", "CFLAGS", "CXXFLAGS", "LDFLAGS"),
    *("CUDAFLAGS", "CUDAHOSTCXX", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"),
    *PASSED_ON,
)
# What the build and Horovod itself import (setuptools: distutils, which Python dropped in 3.12).
_PACKAGES = {
    "setuptools": '"setuptools<81"',
    "wheel": "wheel",
    "packaging": "packaging",
    "cffi": "cffi",
    "cloudpickle": "cloudpickle",
    "psutil": "psutil",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class Torch:
    """The installed torch, as far as a build against it is concerned."""

    version: str
    build: str | None
    """The commit it was built from; nightly and home-made builds share version numbers."""
    cuda: str | None
    hip: str | None
    """The versions of CUDA or ROCm it was built with, or None."""
    cxx11_abi: bool
    cxx_standard: int
    """The C++ standard that its headers ask for, such as 17."""


@dataclass(frozen=True)
class Toolchain:
    """Everything that decides what comes out of the build."""

    python: str
    """Implementation, version and ABI."""
    machine: str
    """Processor and C library, with the processor's features that Horovod's CMake looks for."""
    torch: Torch
    mpi: Mpi
    cxx: str
    cc: str
    """The commands of the C++ and C compilers."""
    compiler: str
    """What the C++ compiler says of itself."""
    cmake: str
    """CMake's version."""
    cmake_program: str
    cuda: Cuda | None
    """CUDA and NCCL, or None for a build for CPUs."""
    flags: tuple[tuple[str, str], ...] = ()
    """The environment's variables that change the compilation, with their values."""

    def describe(self) -> dict[str, object]:
        """What changes the wheel, as a dictionary: for the cache's key and the record inside the wheel."""
        content: dict[str, object] = json.loads(json.dumps(asdict(self), default=str))
        for name in ("cmake_program", "cxx", "cc"):  # where a program is changes nothing, its version does
            del content[name]
        return content


def find_toolchain(mpi: str = "auto", gpu: str = "auto") -> Toolchain:
    """Look for everything at once, before any work.

    Args:
        mpi: `"auto"` (the environment's Open MPI wheel if it is there, else the system's), `"wheel"`, `"system"`,
            or the folder that an MPI is installed in.
        gpu: `"auto"` (NCCL if torch has CUDA), `"nccl"`, or `"none"` to build for CPUs whatever torch can do.

    Raises BuildError naming what is missing and the remedy.
    """
    _check_python()
    cxx, cc = _find_compilers()
    cmake_program, cmake = _find_cmake()
    chosen_mpi = find_mpi(mpi)
    check_mpi4py(chosen_mpi)
    torch = _ask_torch()  # takes seconds, so it comes after what takes none
    if gpu == "auto" and torch.hip is not None:
        raise BuildError(f"the installed torch is for ROCm {torch.hip}, for which hvdkit builds no Horovod; pass "
                         "--gpu none to build it for CPUs only (GPU tensors will then not be reduced)")  # fmt: skip
    return Toolchain(
        python=f"{platform.python_implementation()} {platform.python_version()} {sysconfig.get_config_var('SOABI')}",
        machine=_machine(),
        torch=torch,
        mpi=chosen_mpi,
        cxx=cxx,
        cc=cc,
        compiler=_check_compiler(cxx, torch.cxx_standard),
        cmake=cmake,
        cmake_program=cmake_program,
        cuda=find_cuda(torch.cuda) if gpu == "nccl" or (gpu == "auto" and torch.cuda is not None) else None,
        flags=tuple((name, os.environ[name]) for name in _FLAGS if os.environ.get(name)),
    )


def _check_python() -> None:
    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"pip is missing in {sys.prefix}; install it with `python -m ensurepip`")
    missing = [requirement for name, requirement in _PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise BuildError(f"Python packages that the build needs are missing; run `pip install {' '.join(missing)}`")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise BuildError(f"Python's C headers are missing ({headers}/Python.h); install them, for example Debian's "
                         "python3-dev")  # fmt: skip


def _ask_torch() -> Torch:
    code = (
        "import json, torch; print(json.dumps({'folder': torch.__path__[0], 'version': torch.__version__, "
        "'build': getattr(torch.version, 'git_version', None), 'cuda': torch.version.cuda, "
        "'hip': getattr(torch.version, 'hip', None), 'cxx11_abi': torch.compiled_with_cxx11_abi()}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
        raise BuildError(f"torch is not installed in this environment, or does not load ({reason}); install it first, "
                         "for example with `pip install torch`")  # fmt: skip
    answer = json.loads(result.stdout.splitlines()[-1])
    numbers = [int(digits) for digits in re.findall(r"\d+", answer["version"])[:2]]
    if tuple(numbers) < MINIMUM_TORCH:
        raise BuildError(f"torch {answer['version']} is older than 2.1, which hvdkit needs; install a newer one with "
                         "`pip install --upgrade torch`")  # fmt: skip
    return Torch(cxx_standard=_cxx_standard(Path(answer.pop("folder"))), **answer)


def _cxx_standard(torch: Path) -> int:
    """What torch's own headers refuse to go below; they moved from C++17 to C++20 between two minor versions."""
    try:
        text = (torch / "include/torch/csrc/api/include/torch/all.h").read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(f"the installed torch has no C++ headers ({error}); install a build of torch that has them, "
                         "such as PyPI's")  from None  # fmt: skip
    found = re.search(r"__cplusplus < 20(\d\d)", text)
    return int(found[1]) if found else 17


def _find_compilers() -> tuple[str, str]:
    """The commands of the C++ and C compilers (gloo's CMake asks for the latter); checks for make too."""
    commands = []
    for language, variable, names in (("C++", "CXX", ("c++", "g++", "clang++")), ("C", "CC", ("cc", "gcc", "clang"))):
        given = os.environ.get(variable)
        found = [given] if given else [name for name in names if shutil.which(name)]
        if not found or shutil.which(shlex.split(found[0])[0]) is None:
            wanted = f"{variable}={given}" if given else ", ".join(names)
            raise BuildError(f"no {language} compiler on PATH ({wanted}); {_COMPILER_REMEDY}")
        commands.append(found[0])
    if not (shutil.which("make") or shutil.which("gmake")):
        raise BuildError("make is not on PATH; install it, for example Debian's make")
    return commands[0], commands[1]


def _check_compiler(cxx: str, standard: int) -> str:
    """What the compiler says of itself, after it has compiled a program in the C++ that torch's headers need."""
    command = shlex.split(cxx)
    with tempfile.TemporaryDirectory(prefix="hvdkit-compiler-") as scratch:
        source = Path(scratch, "check.cc")
        source.write_text("#include <string>\nint main() { std::string text; }\n", encoding="utf-8")
        status, said = _output([*command, f"-std=c++{standard}", str(source), "-o", str(Path(scratch, "check"))])
    if status:
        reason = next((line.strip() for line in said.splitlines() if line.strip()), f"status {status}")
        raise BuildError(f"the C++ compiler `{cxx}` does not compile a C++{standard} program, which the installed "
                         f"torch needs ({reason}); {_COMPILER_REMEDY}, and name it in CXX")  # fmt: skip
    return _output([*command, "--version"])[1].strip().partition("\n")[0]


def _find_cmake() -> tuple[str, str]:
    beside = Path(sys.executable).parent / "cmake"
    program = str(beside) if beside.exists() else shutil.which("cmake")
    if program is None:
        raise BuildError("cmake is not on PATH; install it with `pip install cmake`")
    found = re.search(r"version (\d+)\.(\d+)(\.\d+)?", _output([program, "--version"])[1])
    if found is None:
        raise BuildError(f"`{program} --version` does not work; install CMake again with `pip install cmake`")
    if (int(found[1]), int(found[2])) < MINIMUM_CMAKE:
        raise BuildError(f"{program} is {found[0]}, older than 3.13; install a newer one with `pip install cmake`")
    return program, found[0].removeprefix("version ")


def _machine() -> str:
    """Horovod's CMake uses the features of the processor that it is built on; a home may be shared by several."""
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    features = sorted(words & {"avx", "f16c", "fma"})
    return " ".join([platform.system(), platform.machine(), libc or "", *features])


def _output(command: list[str]) -> tuple[int, str]:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return result.returncode, result.stdout or result.stderr
