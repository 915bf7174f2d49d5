"""The same behaviour under every launcher: a whole script, from before init() to after its end."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import run_program, run_ranks, succeed

TOUR = Path(__file__).with_name("tour.py")
NOT_INITIALIZED = "Horovod has not been initialized; use hvd.init()."

pytestmark = pytest.mark.launch


@pytest.mark.parametrize(
    ("launcher", "ranks", "mpi4py"),
    [("python", 1, "later"), ("mpirun", 3, "later"), ("horovodrun-mpi", 2, "first"), ("horovodrun-gloo", 2, "later")],
)
def test_tour(launcher: str, ranks: int, mpi4py: str, tmp_path: Path) -> None:
    result = succeed(run_ranks(ranks, TOUR, tmp_path, mpi4py, launcher=launcher))
    assert "Warning" not in result.stderr and "rror" not in result.stderr, result.stderr
    uses_mpi = launcher != "horovodrun-gloo"
    for rank in range(ranks):
        seen: dict[str, Any] = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["before"] == [*[f"ValueError: {NOT_INITIALIZED}"] * 2, f"HorovodInternalError: {NOT_INITIALIZED}"]
        assert seen["initialised"] == [False, True, False, True]
        assert seen["place"] == [[rank, ranks, rank, ranks, 0, 1]] * 2
        assert seen["backend"] == ["mpi" if uses_mpi else "gloo", uses_mpi, not uses_mpi]
        assert seen["sum"] == [ranks, 2 * ranks]
        assert seen["half"] == [ranks / 2] * 2
        assert seen["gathered"] == [*range(ranks)]
        # Each step takes lr times the ranks' mean from both weights, also after a restart.
        mean = (ranks + 1) / 2
        assert seen["trained"] == [round(2 * (1 - step * 0.25 * mean), 5) for step in (1, 2)]
        assert seen["after"][0] == seen["after"][2] == f"ValueError: {NOT_INITIALIZED}"
        assert seen["after"][1] == f"HorovodInternalError: {NOT_INITIALIZED}"
        assert seen["step alone"].startswith("ValueError")
        assert seen["kinds"] == ["torch.float32"] * 4
        assert "is a duplicate" in seen["known set twice"]
        if ranks > 1:
            assert seen["set"] == [rank == ranks - 1, 1, *([1.0] if rank == ranks - 1 else [])]
        if uses_mpi:
            assert seen["sum before init" if mpi4py == "first" else "sum after init"] == ranks
            assert seen["sum in an exit handler"] == ranks
        if uses_mpi and ranks == 3:
            assert seen["halves"] == ([1, 0, 2] if rank == 2 else [2, rank, 1])
            assert seen["split"] == ([1, 1] if rank == 1 else [2, 2])
            if rank == 1:
                assert seen["left out"].startswith("ValueError: init: comm=[0, 2] leaves out this process, rank 1")


def test_run_starts_ranks_from_a_program() -> None:
    """`hvd.run`, Horovod's launcher as a function."""
    code = """
import hvdkit as hvd

def work(first, second):
    import torch
    hvd.init()
    return hvd.rank(), hvd.allreduce(torch.tensor([first, second]), op=hvd.Sum).tolist()

print(hvd.run(work, args=(1,), kwargs={"second": 2}, np=2, use_gloo=True))
"""
    result = succeed(run_program([sys.executable, "-c", code]))
    assert result.stdout.strip().splitlines()[-1] == "[(0, [2, 4]), (1, [2, 4])]"
