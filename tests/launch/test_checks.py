"""The doctor's judgement: what each check says of machines that are not this one."""

from dataclasses import replace
from typing import Any

import pytest

from hvdkit.launch.checks import libraries, machine, mpi
from hvdkit.launch.compare import differences
from hvdkit.launch.facts import Facts
from hvdkit.launch.findings import Finding, ok, warning
from hvdkit.launch.mpi_launcher import MpiLauncher
from hvdkit.launch.site import Site

OPEN_MPI = MpiLauncher("/site/bin/mpirun", "openmpi", "mpirun (Open MPI) 4.1.8", (4, 1))
HYDRA = MpiLauncher("/other/bin/mpirun", "hydra", "HYDRA 5.0.2", (5, 0))
SITE = Site(mpi=OPEN_MPI, horovodrun="/env/bin/horovodrun", path="/env/bin", is_root=False)
TORCH: dict[str, Any] = {"version": "2.13.0", "cuda": None, "gpus": 0}
HOROVOD: dict[str, Any] = {
    "version": "0.28.1",
    "mpi": True,
    "gloo": True,
    "nccl": 0,
    "cuda": False,
    "links": ["/site/lib/libmpi.so.40"],
    "torch": "2.13.0",
    "library": "Open MPI v4.1.8",
}
MPI4PY: dict[str, Any] = {"library": "Open MPI v4.1.8", "loaded": ["/site/lib/libmpi.so.40"]}
GOOD = Facts(2, SITE, TORCH, HOROVOD, MPI4PY, {"mpi": {"version": "Open MPI v4.1.8", "folder": "/site/bin"}})


def only(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    assert bool(finding.remedy) == (finding.state != "ok")
    return finding


def test_a_good_machine() -> None:
    checks = [libraries.torch, libraries.horovod, libraries.built_with, libraries.gpu, mpi.linked_library,
              mpi.loaded_library, mpi.mpirun, mpi.horovodrun]  # fmt: skip
    assert [only(check(GOOD)).state for check in checks] == ["ok"] * len(checks)
    assert list(libraries.build_tools(GOOD)) == []


@pytest.mark.parametrize(
    ("horovod", "found", "remedy"),
    [
        ({"error": "ModuleNotFoundError: No module named 'horovod'"}, "not installed", "build it"),
        ({"error": "crashed with SIGSEGV"}, "does not load: crashed with SIGSEGV", "another torch or MPI"),
        (HOROVOD | {"mpi": False, "gloo": False}, "neither MPI nor Gloo", "build it again"),
    ],
)
def test_horovod_that_cannot_work(horovod: dict[str, Any], found: str, remedy: str) -> None:
    finding = only(libraries.horovod(replace(GOOD, horovod=horovod)))
    assert finding.state == "problem" and found in finding.found and remedy in finding.remedy


def test_horovod_of_another_torch() -> None:
    finding = only(libraries.built_with(replace(GOOD, torch=TORCH | {"version": "2.14.0"})))
    assert finding.state == "problem" and finding.found.endswith("but torch 2.14.0 is installed")
    unknown = only(libraries.built_with(replace(GOOD, record={})))
    assert unknown.state == "ok" and "not built by this hvdkit" in unknown.found


@pytest.mark.parametrize(
    ("gpus", "nccl", "cuda", "state", "found"),
    [
        (0, 0, False, "ok", "no GPU here"),
        (4, 21805, True, "ok", "2.18.5"),
        (4, 2708, True, "ok", "2.7.8"),
        (4, 0, True, "warning", "travel through the CPU"),
        (4, 0, False, "problem", "cannot reduce their tensors"),
    ],
)
def test_gpus(gpus: int, nccl: int, cuda: bool, state: str, found: str) -> None:
    facts = replace(GOOD, torch=TORCH | {"gpus": gpus}, horovod=HOROVOD | {"nccl": nccl, "cuda": cuda})
    finding = only(libraries.gpu(facts))
    assert finding.state == state and found in finding.found


def test_launchers_that_do_not_fit() -> None:
    other = only(mpi.mpirun(replace(GOOD, site=replace(SITE, mpi=HYDRA))))
    assert other.state == "problem" and "cannot start ranks of Open MPI v4.1.8" in other.found
    older = replace(OPEN_MPI, title="mpirun (Open MPI) 3.1.0", version=(3, 1))
    finding = only(mpi.mpirun(replace(GOOD, site=replace(SITE, mpi=older))))
    assert finding.state == "problem" and finding.found.endswith("the library is Open MPI v4.1.8")
    mpich = replace(GOOD, site=replace(SITE, mpi=HYDRA), horovod=HOROVOD | {"library": "MPICH Version: 4.0.2"})
    assert only(mpi.mpirun(mpich)).state == "ok"


def test_two_mpi_libraries() -> None:
    another = replace(GOOD, mpi4py={"library": "MPICH Version: 5.0.2", "loaded": ["/env/lib/libmpi.so.12"]})
    finding = only(mpi.loaded_library(another))
    assert finding.state == "warning" and "export MPI4PY_LIBMPI=/site/lib/libmpi.so.40" in finding.remedy
    broken = replace(GOOD, horovod={**HOROVOD, "mpi4py": "libmpi.so.12: cannot open", "library": ""})
    assert "build mpi4py for this MPI" in only(mpi.linked_library(broken)).remedy


def test_without_mpi_gloo_is_left() -> None:
    """No MPI is a problem only where Horovod has no Gloo either."""
    site, none = replace(SITE, mpi=None), {"error": "cannot load MPI library"}
    horovod = HOROVOD | {"mpi": False, "links": []}
    gloo = replace(GOOD, site=site, mpi4py=none, horovod=horovod)
    for check in (mpi.mpirun, mpi.loaded_library):
        finding = only(check(gloo))
        assert finding.state == "warning" and "hvdkit run --gloo" in finding.remedy
        assert only(check(replace(gloo, horovod=horovod | {"gloo": False}))).state == "problem"


def test_more_ranks_than_cores_and_shared_memory() -> None:
    crowded = replace(GOOD, ranks=10**6)
    assert [only(check(crowded)).state for check in (machine.cores, machine.shared_memory)] == ["warning"] * 2


def test_hosts_that_differ() -> None:
    here = [ok("torch", "2.13.0 (CPU build)", "2.13.0"), ok("cores", "2 of 2"), ok("NCCL", "2.18.5", "21805")]
    there = [ok("torch", "2.12.0 (CPU build)", "2.12.0"), warning("cores", "1 of 1", "share"), ok("NCCL", "not needed")]
    found = differences("node2", there, here)
    assert [(row.item, row.state) for row in found] == [
        ("node2: cores", "warning"), ("node2: torch", "problem"), ("node2: NCCL", "problem")]  # fmt: skip
    assert found[1].found == "2.12.0 there, 2.13.0 here" and found[1].remedy
    assert differences("node2", here, here) == [ok("node2", "fits this host")]
    assert differences("node2", here[:2], here)[0].item == "node2: NCCL"
