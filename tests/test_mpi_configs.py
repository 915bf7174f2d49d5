"""Every file of mpi_configs: run where this machine can, otherwise parsed and its names compared with Open MPI's own.

The files for several hosts are also run in tests/cluster.
"""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs import BIN, ROOT, run_program, succeed

CONFIGS = ROOT / "mpi_configs"
FILES = sorted(path for path in CONFIGS.iterdir() if path.name != "README.md")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

# What a rank can do without torch: add up all ranks' numbers, and write down that and what it was given.
RANK = """
import json, os, sys
from pathlib import Path
import mpi4py
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
Path(sys.argv[1], str(world.rank)).write_text(json.dumps([world.size, total, dict(os.environ)]))
"""


@dataclass(frozen=True)
class Launch:
    """Starts jobs of RANK, whose ranks write into `folder`."""

    folder: Path

    def __call__(self, *launcher: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        for old in self.folder.iterdir():
            old.unlink()
        return run_program([*launcher, "python", "-c", RANK, self.folder], env={**AS_ROOT, **(env or {})}, timeout_s=60)

    def environments(self, size: int) -> list[dict[str, str]]:
        """Each rank's environment, after a job of `size` ranks in which each one knew all others."""
        found = {int(path.name): json.loads(path.read_text()) for path in self.folder.iterdir()}
        assert sorted(found) == list(range(size))
        assert {(n, total) for n, total, _ in found.values()} == {(size, size * (size + 1) // 2)}
        return [environ for _, _, environ in found.values()]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path)


@functools.cache
def open_mpi() -> tuple[dict[str, str], frozenset[str]]:
    """Open MPI's parameters with their values, and its components as `framework/name`."""
    program = shutil.which("ompi_info", path=str(BIN)) or shutil.which("ompi_info")
    if program is None:
        pytest.skip("ompi_info is not here: another MPI than Open MPI is used")
    text = succeed(run_program([program, "--all", "--level", "9", "--parsable"])).stdout
    if "ompi:version:full:4.1" not in text:
        pytest.skip("another Open MPI than 4.1")
    values = dict(re.findall(r"^mca:[^:]+:[^:]+:param:([^:]+):value:(.*)$", text, re.MULTILINE))
    components = {f"{kind}/{name}" for kind, name in re.findall(r"^mca:([^:]+):([^:]+):version:", text, re.MULTILINE)}
    return values, frozenset(components)


def settings(path: Path) -> dict[str, str]:
    """`name = value` lines, as Open MPI reads them, and the suggestions among the comments (`# name = value`)."""
    return dict(re.findall(r"^(?:# )?(\w+) = (.*)$", path.read_text(), re.MULTILINE))


def header(path: Path) -> str:
    """The comment that the file begins with, a `#!` line aside."""
    lines = path.read_text().splitlines()
    start = 1 if lines[0].startswith("#!") else 0
    end = next(number for number, line in enumerate(lines[start:], start) if not line.startswith("#"))
    return "\n".join(lines[start:end])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_begins_with_its_use(path: Path) -> None:
    assert f"mpi_configs/{path.name}" in header(path), "the command is missing"
    assert re.sub(r"_\d_", "_*_", path.name) in (CONFIGS / "README.md").read_text()


@pytest.mark.parametrize("path", [*CONFIGS.glob("*.conf"), *CONFIGS.glob("*.env")], ids=lambda path: path.name)
def test_open_mpi_knows_every_parameter(path: Path) -> None:
    known, components = open_mpi()
    found = settings(path)
    found |= dict(re.findall(r"^OMPI_MCA_(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    assert found and found.keys() <= known.keys()
    for framework in found.keys() & {"pml", "btl"}:
        if not found[framework].startswith("^"):  # what is excluded need not be there
            assert {f"{framework}/{name}" for name in found[framework].split(",")} <= components


@pytest.mark.launch
@pytest.mark.parametrize("count", [2, 4, 8])
def test_ranks_on_one_machine(count: int, launch: Launch) -> None:
    succeed(launch("mpirun", "--hostfile", f"mpi_configs/one_machine_{count}_ranks.hosts"))
    launch.environments(count)


@pytest.mark.launch
def test_laptop_takes_more_ranks_than_slots_and_they_yield(launch: Launch) -> None:
    path = CONFIGS / "oversubscribed_laptop.conf"
    use = {"OMPI_MCA_mca_base_param_files": str(path)}
    command = ["mpirun", "--host", "localhost:1", "-np", "2"]
    assert launch(*command).returncode != 0, "one slot takes two ranks without the file, too"
    succeed(launch(*command, env=use))
    launch.environments(2)
    seen = run_program([*command, "ompi_info", "--all", "--level", "9", "--parsable"], env={**AS_ROOT, **use}).stdout
    for name in settings(path):
        assert f"param:{name}:source:file ({path}:" in seen, f"ranks do not see {name}"


@pytest.mark.launch
def test_ucx_carries_where_it_may_and_refuses_to_fall_back(launch: Launch) -> None:
    path = CONFIGS / "infiniband_ucx.conf"
    use = {"OMPI_MCA_mca_base_param_files": str(path)}
    suggested = settings(path)
    take_any = [word for name in ("pml_ucx_tls", "pml_ucx_devices") for word in ("--mca", name, suggested[name])]
    # Of the variables that the file names, other values, since the adapter of its example is not here.
    ucx = {"UCX_TLS": "sm,self", "UCX_NET_DEVICES": "all"}
    assert set(re.findall(r"UCX_[A-Z_]+", path.read_text())) == ucx.keys()
    result = succeed(launch("mpirun", *take_any, "-np", "2", env={**use, **ucx}))
    launch.environments(2)
    assert "unused environment variable" not in result.stdout + result.stderr, "UCX does not know a name"
    if not Path("/sys/class/infiniband").exists():
        assert "PML ucx cannot be selected" in launch("mpirun", "-np", "2", env=use).stderr
        succeed(launch("horovodrun", "-np", "2", env=use))  # it overrides the file, as the file says
        launch.environments(2)


@pytest.mark.launch
def test_gpu_environment_reaches_the_ranks(launch: Launch) -> None:
    path = CONFIGS / "gpus_nccl.env"
    expected = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    libraries = b"".join(library.read_bytes() for library in horovod_folder().glob("torch/mpi_lib_v2*.so"))
    for name in expected:
        assert not name.startswith("HOROVOD_") or name.encode() in libraries, f"Horovod does not know {name}"
    # The interface that joins two hosts is not here; loopback stands in for it.
    expected |= {name: "lo" for name, value in expected.items() if value == "eth0"}
    stand_in = " ".join(f"{name}={value}" for name, value in expected.items() if value == "lo")
    script = f'set -aeu; . {path}; {stand_in}; set +a; exec horovodrun -np 2 "$@"'
    succeed(launch("bash", "-c", script, "bash"))
    for environ in launch.environments(2):
        assert expected == {name: environ[name] for name in expected}


@pytest.mark.launch
def test_horovodrun_takes_its_file(launch: Launch) -> None:
    path = CONFIGS / "horovodrun.yaml"
    said = yaml.safe_load(path.read_text())
    assert said.pop("controller") == "mpi"
    leaves = {f"{group}.{name}": value for group, items in said.items() for name, value in items.items()}
    expected = dict(_VARIABLES[name](value) for name, value in leaves.items())
    succeed(launch("horovodrun", "--config-file", str(path), "-np", "2"))
    for environ in launch.environments(2):
        assert expected == {name: environ.get(name) for name in expected}
        assert "OMPI_COMM_WORLD_RANK" in environ


# What Horovod's engine must find in its environment for each entry of horovodrun's file.
_VARIABLES: dict[str, Any] = {
    "params.fusion_threshold_mb": lambda value: ("HOROVOD_FUSION_THRESHOLD", str(value * 2**20)),
    "params.cycle_time_ms": lambda value: ("HOROVOD_CYCLE_TIME", str(value)),
    "params.cache_capacity": lambda value: ("HOROVOD_CACHE_CAPACITY", str(value)),
    "stall_check.enabled": lambda value: ("HOROVOD_STALL_CHECK_DISABLE", str(int(not value))),
    "stall_check.warning_time_seconds": lambda value: ("HOROVOD_STALL_CHECK_TIME_SECONDS", str(value)),
    "stall_check.shutdown_time_seconds": lambda value: ("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(value)),
    "library_options.gloo_timeout_seconds": lambda value: ("HOROVOD_GLOO_TIMEOUT_SECONDS", str(value)),
    "logging.level": lambda value: ("HOROVOD_LOG_LEVEL", value),
}


def test_slurm_script() -> None:
    path = CONFIGS / "slurm.sbatch"
    succeed(run_program(["bash", "-n", path]))
    lines = path.read_text().splitlines()
    directives = {number: line for number, line in enumerate(lines) if line.startswith("#SBATCH")}
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command, "sbatch reads no directive after the first command"
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", "\n".join(directives.values()), re.MULTILINE))
    assert len(options) == len(directives)
    assert options["nodes"] == "2" and options["ntasks-per-node"] == "4", "the first line of the file says otherwise"


def test_kubernetes_job() -> None:
    job = yaml.safe_load((CONFIGS / "kubernetes_mpijob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    spec = job["spec"]
    launcher, worker = spec["mpiReplicaSpecs"]["Launcher"], spec["mpiReplicaSpecs"]["Worker"]
    assert (launcher["replicas"], spec["mpiImplementation"]) == (1, "OpenMPI")
    words = only_container(launcher)["command"]
    assert words[0] == "mpirun" and all(isinstance(word, str) for word in words)
    assert int(words[words.index("-np") + 1]) == spec["slotsPerWorker"] * worker["replicas"]
    assert all(words[at + 1] in open_mpi()[0] for at, word in enumerate(words) if word == "--mca")
    mounted = {mount["name"] for mount in only_container(worker)["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert only_container(launcher)["image"] == only_container(worker)["image"]


def only_container(replica: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any]
    (container,) = replica["template"]["spec"]["containers"]
    return container


def horovod_folder() -> Path:
    import horovod

    return Path(horovod.__file__).parent
