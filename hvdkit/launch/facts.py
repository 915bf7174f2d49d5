"""What the doctor's checks look at, gathered once.

Each library is asked in a process of its own, with a time limit, so that one that crashes or hangs at import is a
finding and not the doctor's end.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hvdkit.horovod_build.record import horovod_record
from hvdkit.launch.site import Site, find_site

_LIMIT_S = 180

# The MPI libraries that the loader has really mapped into the process (not their C++ and Fortran companions).
_MAPPED = r"""
def mapped():
    paths = re.findall(r"/.*/libmpi(?:ch)?\.so\S*", open("/proc/self/maps").read())
    return sorted({os.path.realpath(path) for path in paths})
def title(mpi):
    return " ".join(mpi.Get_library_version().splitlines()[0].split(",")[0].split())
"""
_TORCH = """
import torch
answer = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
"""
# In the order of `init()`: Horovod's library brings its MPI into the process, and mpi4py takes what is there.
_HOROVOD = """
import horovod.torch.mpi_ops as ops, horovod, pathlib
metadata = pathlib.Path(horovod.__file__).parent / "metadata.json"
answer = {"version": horovod.__version__, "mpi": ops.mpi_built(), "gloo": ops.gloo_built(),
          "nccl": int(ops.nccl_built()), "cuda": ops.cuda_built() or ops.rocm_built(), "links": mapped(),
          "torch": json.loads(metadata.read_text()).get("pytorch") if metadata.exists() else None}
if answer["mpi"]:
    try:
        from hvdkit.runtime.mpi import load_mpi
        answer["library"] = title(load_mpi())
    except Exception as error:
        answer["mpi4py"] = str(error.__cause__ or error)
"""
# As a script that imports mpi4py first.
_MPI4PY = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
answer = {"library": title(MPI), "loaded": mapped()}
"""


@dataclass(frozen=True)
class Facts:
    """An answer of a library is a dictionary; `{"error": text}` where it did not load."""

    ranks: int
    """The ranks that this machine shall run."""
    site: Site
    torch: dict[str, Any]
    horovod: dict[str, Any]
    mpi4py: dict[str, Any]
    record: dict[str, Any]
    """What Horovod was built with, if hvdkit built it."""

    @property
    def library(self) -> str:
        """The MPI library of a job, such as `Open MPI v4.1.8`; empty if there is none."""
        asked = self.mpi4py if "error" in self.horovod else self.horovod
        return str(asked.get("library", ""))


def gather(ranks: int) -> Facts:
    """Ask the three libraries at once, in the environment that a job would have."""
    site = find_site()
    with ThreadPoolExecutor(3) as pool:
        torch, horovod, mpi4py = pool.map(lambda code: _ask(code, site.path), (_TORCH, _HOROVOD, _MPI4PY))
    return Facts(ranks, site, torch, horovod, mpi4py, horovod_record())


def _ask(code: str, path: str) -> dict[str, Any]:
    program = f"import json, os, re\n{_MAPPED}\n{code}\nprint(json.dumps(answer))"
    try:
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, errors="replace",
                                check=False, timeout=_LIMIT_S, stdin=subprocess.DEVNULL,
                                env={**os.environ, "PATH": path})  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_LIMIT_S} s"}
    if result.returncode < 0:
        return {"error": f"crashed with {signal.Signals(-result.returncode).name}"}
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        return {"error": lines[-1].strip()}
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer
