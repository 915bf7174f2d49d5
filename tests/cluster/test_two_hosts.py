"""Jobs over two hosts: ranks find their places, add up, train as on one host, and end together.

Everything is started on node1, as a person would who is logged in there.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from hvdkit.merge import merge_states
from hvdkit.train.metrics import read_metrics
from tests.cluster.hosts import Host
from tests.jobs import ROOT, run_program, succeed
from tests.merge.submodels import read, tensors_of, write_family

pytestmark = [pytest.mark.hosts, pytest.mark.launch]

REPORT = Path(__file__).with_name("report.py")
CONFIGS = ROOT / "mpi_configs"

# Open MPI from a wheel must be told where it is on the other host.
PREFIX = ["--prefix", sys.prefix] if (Path(sys.prefix) / "bin" / "orted").exists() else []
LAUNCH = {
    "horovodrun --mpi": ["horovodrun", "--mpi", "-np", "4", "-H", "node1:2,node2:2", f"--mpi-args={' '.join(PREFIX)}"],
    "horovodrun --gloo": ["horovodrun", "--gloo", "-np", "4", "-H", "node1:2,node2:2"],
    "hvdkit run": ["hvdkit", "run", "-np", "4", "-H", "node1:2,node2:2", "--"],
    "hvdkit run, mpirun": [
        "hvdkit", "run", "-np", "4", "--hostfile", "mpi_configs/two_hosts_ethernet.hosts", "--launcher", "mpirun",
        "--network-interface", "eth0", "--",
    ],
    "hvdkit run --gloo": ["hvdkit", "run", "--gloo", "-np", "4", "-H", "node1:2,node2:2", "--"],
    "mpirun, two_hosts_ethernet": [
        "env", f"OMPI_MCA_mca_base_param_files={CONFIGS}/two_hosts_ethernet.conf",
        "mpirun", *PREFIX, "-x", "PATH", "--hostfile", "mpi_configs/two_hosts_ethernet.hosts",
    ],
}  # fmt: skip


def run_on(host: Host, *words: str | Path, timeout_s: float = 140) -> subprocess.CompletedProcess[str]:
    return run_program(host.enter(*words), timeout_s=timeout_s)


def check_reports(folder: Path, backend: str) -> None:
    """All four ranks were where they belong, their sums and communicators are right, and they read one cache."""
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]
    tokens = reports[0]["tokens"]
    assert 0 < tokens[2] < tokens[0] and len(list((folder / "cache" / "tokens").iterdir())) == 1
    for rank, report in enumerate(reports):
        node, place = divmod(rank, 2)
        assert report.pop("threads") >= 1
        assert report.pop("tokens") == tokens
        assert report == {
            "rank": rank, "size": 4, "local_rank": place, "local_size": 2, "cross_rank": node, "cross_size": 2,
            "backend": backend, "hostname": f"node{node + 1}", "total": [6.0, 10.0, 14.0, 18.0],
            "comm": [0, 1, 2, 3] if backend == "mpi" else None,
            "local_comm": [2 * node, 2 * node + 1] if backend == "mpi" else None,
            "cross_comm": [place, place + 2] if backend == "mpi" else None,
        }  # fmt: skip


@pytest.mark.parametrize("name", ["hvdkit run, mpirun", "hvdkit run --gloo", "mpirun, two_hosts_ethernet"])
def test_ranks_find_their_places(name: str, hosts: list[Host], tmp_path: Path) -> None:
    succeed(run_on(hosts[0], *LAUNCH[name], sys.executable, REPORT, tmp_path))
    check_reports(tmp_path, "gloo" if "gloo" in name else "mpi")


def test_training_is_the_same_as_on_one_host(hosts: list[Host], tmp_path: Path) -> None:
    """And each node makes its own token cache, once."""
    options = ["--data", "LICENSE", "--model", "gpt-toy", "--context", "32", "--batch-size", "2", "--steps", "4",
               "--log-every", "1", "--precision", "float64", "--sample-tokens", "0", "--seed", "5"]  # fmt: skip
    train = [sys.executable, "-m", "hvdkit.train", *options]
    two = succeed(run_on(hosts[0], *LAUNCH["horovodrun --mpi"], *train, "--out", tmp_path / "two"))
    assert "4 ranks on 2 hosts" in two.stdout
    caches = [sorted(host.disk.glob("home/.cache/hvdkit/tokens/*")) for host in hosts]
    assert [len(cache) for cache in caches] == [1, 1] and caches[0][0].name == caches[1][0].name
    one = succeed(run_on(hosts[0], "horovodrun", "--mpi", "-np", "4", *train, "--out", tmp_path / "one"))
    assert "4 ranks on 1 host" in one.stdout
    losses = [
        [item[key] for item in read_metrics(tmp_path / name) for key in ("loss", "validation_loss") if key in item]
        for name in ("one", "two")
    ]
    assert len(losses[0]) >= 5 and losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize("stage", ["1", "3"])
def test_a_model_cut_over_hosts_trains_the_same(stage: str, hosts: list[Host], tmp_path: Path) -> None:
    options = ["--data", "LICENSE", "--model", "gpt-toy", "--context", "32", "--batch-size", "2", "--steps", "4",
               "--log-every", "1", "--precision", "float64", "--sample-tokens", "0"]  # fmt: skip
    train = [sys.executable, "-m", "hvdkit.train", *options]
    cut = [*train, "--sharding", stage, "--out", tmp_path / "cut"]
    assert "4 ranks on 2 hosts" in succeed(run_on(hosts[0], *LAUNCH["horovodrun --mpi"], *cut)).stdout
    succeed(run_on(hosts[0], "horovodrun", "--mpi", "-np", "4", *train, "--out", tmp_path / "whole"))
    losses = [
        [item[key] for item in read_metrics(tmp_path / name) for key in ("loss", "validation_loss") if key in item]
        for name in ("whole", "cut")
    ]
    assert len(losses[0]) >= 5 and losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.parametrize("name", ["horovodrun --mpi", "horovodrun --gloo"])
def test_submodels_on_different_hosts_merge(name: str, hosts: list[Host], tmp_path: Path) -> None:
    """Each host has one submodel on a disk of its own; only the first sees where the result goes."""
    base, *models = write_family(tmp_path / "family", 2)
    places = [f"/dev/shm/{path.name}" for path in models]
    for host, path, place in zip(hosts, models, places, strict=True):
        succeed(run_program(host.enter("cp", "-r", path, place)))
    recipe = tmp_path / "recipe.yaml"
    content = {"rule": "ties", "base": str(base), "models": [{"path": place, "density": 0.5} for place in places]}
    recipe.write_text(yaml.safe_dump(content))
    merge = [sys.executable, "-m", "hvdkit.merge", recipe, "--out", "/dev/shm/merged"]
    succeed(run_on(hosts[0], *LAUNCH[name], *merge))
    succeed(run_program(hosts[0].enter("cp", "-r", "/dev/shm/merged", tmp_path / "merged")))
    for host in hosts:
        succeed(run_program(host.enter("rm", "-r", "-f", *places, "/dev/shm/merged")))
    wanted = merge_states([tensors_of(1), tensors_of(2)], "ties", base=tensors_of(0), density=0.5)
    found = read(tmp_path / "merged")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("name", ["horovodrun --mpi", "horovodrun --gloo"])
def test_a_killed_rank_ends_the_job_on_both_hosts(name: str, hosts: list[Host], tmp_path: Path) -> None:
    result = run_on(hosts[0], *LAUNCH[name], sys.executable, REPORT, tmp_path, "3")
    ended = time.time()
    assert result.returncode != 0
    check_reports(tmp_path, "gloo" if "gloo" in name else "mpi")
    assert ended - float((tmp_path / "died").read_text()) < 30
    deadline = time.time() + 15
    while time.time() < deadline and any(host.processes() for host in hosts):
        time.sleep(0.2)
    assert [host.processes() for host in hosts] == [[], []]


def test_doctor_compares_hosts(hosts: list[Host]) -> None:
    result = succeed(run_on(hosts[0], "hvdkit", "doctor", "-H", "node1:2,node2:2"))
    assert re.search(r"^node2 +ok +fits this host$", result.stdout, re.MULTILINE)
    assert "works: 2 ranks on 2 hosts over mpi" in result.stdout


def test_run_says_what_a_host_lacks(hosts: list[Host]) -> None:
    with without_environment(hosts[1]):
        result = run_on(hosts[0], *LAUNCH["hvdkit run"], "python", "-m", "hvdkit.train")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == (
            f"hvdkit run: error: node2 has no {sys.executable}: every host needs the environment at the same path "
            "(a shared folder, or a copy)\n"
        )
    unknown = run_on(hosts[0], "hvdkit", "run", "-np", "2", "-H", "node1,node3", "--", "true")
    assert unknown.returncode == 2 and "ssh does not reach node3 without a password" in unknown.stderr


@contextmanager
def without_environment(host: Host) -> Iterator[None]:
    """For a while the host has no usable Python where this one is."""
    succeed(run_program(host.enter("mount", "--bind", "/dev/null", sys.executable)))
    try:
        yield
    finally:
        succeed(run_program(host.enter("umount", sys.executable)))
