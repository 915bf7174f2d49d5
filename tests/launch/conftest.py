"""Another MPI's launcher, and a Slurm cluster of one node, where they can be had."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.slurm import Slurm, missing_programs, one_node_cluster


@pytest.fixture(scope="session")
def mpich_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of MPICH's real launchers, from PyPI's wheel."""
    folder = tmp_path_factory.mktemp("mpich")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "mpich>=4"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("PyPI's mpich could not be installed within 120 s")
    if result.returncode or not (folder / "bin" / "mpiexec").exists():
        pytest.skip(f"PyPI's mpich cannot be installed here: {result.stderr.strip()[-200:]}")
    return folder / "bin"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of this machine alone, run by daemons of our own."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"needs root and Debian's slurm-wlm, munge and libpmix-dev (missing: {', '.join(missing)})")
    with one_node_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
