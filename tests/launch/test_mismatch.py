"""A launcher of another MPI than the one that Horovod links: MPICH's mpiexec starts lonely ranks."""

import re
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import run_program

pytestmark = pytest.mark.launch

REMEDY = (
    r"^hvdkit: error: mpiexec \(MPICH\) announced 3 ranks, but this process found itself alone: .* MPI library here: "
    r".*; use the launcher of that MPI \(`hvdkit run -np 3 -- \.\.\.` picks it, `hvdkit doctor` compares them\)$"
)


@pytest.mark.parametrize(
    "words",
    [["-c", "import hvdkit as hvd; hvd.init(); print('alone')"], ["-m", "hvdkit.train", "--out", "OUT"]],
    ids=["script", "hvdkit.train"],
)
def test_one_message(mpich_bin: Path, tmp_path: Path, words: list[str]) -> None:
    words = [str(tmp_path / "run") if word == "OUT" else word for word in words]
    began = time.monotonic()
    result = run_program([mpich_bin / "mpiexec", "-n", "3", sys.executable, *words])
    assert result.returncode == 1, result.stderr
    assert re.fullmatch(REMEDY, result.stderr.strip()), result.stderr
    assert result.stdout == "" and not (tmp_path / "run").exists()
    assert time.monotonic() - began < 60
