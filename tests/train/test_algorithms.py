"""A run that goes on from a checkpoint reduces by the algorithms that the saved run had chosen."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvdkit.checkpoint import load_checkpoint, pack
from hvdkit.checkpoint.manifest import sealed
from hvdkit.collectives.cost import Parameters
from hvdkit.files.hashes import hash_file
from tests.jobs import run_ranks, succeed
from tests.train.runs import as_words, configure, write_text

pytestmark = pytest.mark.launch

RESUMED = Path(__file__).with_name("resumed.py")
ANEW = "no saved choice of algorithms fits these ranks: they are chosen anew, by a probe"
STEPS = 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a run of two ranks."""
    words = as_words(configure(write_text(tmp_path / "text"), tmp_path / "run", steps=STEPS))
    succeed(run_ranks(2, "-m", "hvdkit.train", *words))
    return tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}"


def let_win(checkpoint: Path, winner: str) -> dict[str, Any]:
    """Make algorithm `winner` the quickest in what `checkpoint` keeps; returns the changed parameters."""
    state = load_checkpoint(checkpoint).common()
    for curves in state["collectives"]["curves"].values():
        for name, curve in curves.items():
            seconds = 1e-6 if name == winner else 1.0
            curve["bytes_and_seconds"] = [[nbytes, seconds] for nbytes, _ in curve["bytes_and_seconds"]]
    tensors: dict[str, Any] = {}
    text = json.dumps(pack(state, tensors, "common"))
    (checkpoint / "common.json").write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["common.json"] = {
        "n_bytes": len(text.encode()),
        "xxh3_128": hash_file(checkpoint / "common.json"),
    }
    (checkpoint / "manifest.json").write_text(sealed(manifest))
    changed: dict[str, Any] = state["collectives"]
    return changed


def resume(ranks: int, checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """What a run of one step more on `ranks` printed, and what it reports of its algorithms."""
    report, out = checkpoint.parents[2] / "report.json", checkpoint.parents[2] / "resumed"
    words = ["--resume", checkpoint, "--out", out, "--steps", str(STEPS + 1)]
    printed = succeed(run_ranks(ranks, RESUMED, report, *words)).stdout
    return printed, json.loads(report.read_text())


@pytest.mark.parametrize("winner", ["tree", "ring"])
def test_a_resumed_run_chooses_by_what_was_saved(winner: str, checkpoint: Path) -> None:
    saved = let_win(checkpoint, winner)
    printed, report = resume(2, checkpoint)
    assert report == {"used": [winner], "parameters": saved, "saved_again": saved}
    assert ANEW not in printed


def test_another_number_of_ranks_is_probed_anew(checkpoint: Path) -> None:
    saved = let_win(checkpoint, "tree")
    printed, report = resume(3, checkpoint)
    assert printed.count(ANEW) == 1
    assert report["saved_again"] == report["parameters"] != saved
    assert Parameters.from_json(report["parameters"]).nodes == ((0, 1, 2),)


def test_a_checkpoint_without_a_choice_is_probed_anew(tmp_path: Path) -> None:
    """As of one rank, or of Horovod's engine."""
    words = as_words(configure(write_text(tmp_path / "text"), tmp_path / "run", steps=STEPS))
    succeed(run_ranks(1, "-m", "hvdkit.train", *words, launcher="python"))
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}"
    assert load_checkpoint(checkpoint).common()["collectives"] is None
    printed, report = resume(2, checkpoint)
    assert printed.count(ANEW) == 1 and report["parameters"]["nodes"] == [[0, 1]]
