"""Ranks that were started differently are told so, each with what it has, before they train."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hvdkit.errors import DivergenceError
from hvdkit.runtime import World, gather_objects
from hvdkit.runtime.words import who_has_what
from hvdkit.train.agreement import check_same_model, compare
from tests.jobs import LAUNCHERS, ROOT, run_program
from tests.train.runs import write_text


def test_what_differs_is_named_on_all_ranks(world: World) -> None:
    same = {"--lr": "0.001", "torch": "2"}
    compare(world, same, "rule")
    if world.size == 1:
        return
    last = world.rank == world.size - 1
    mine = {**same, "--lr": "0.002", "more": "1"} if last else same
    with pytest.raises(DivergenceError) as caught:
        compare(world, mine, "use one command")
    others = "rank 0" if world.size == 2 else "ranks 0, 1"
    assert str(caught.value) == (
        f"ranks disagree: --lr is 0.001 on {others} and 0.002 on rank {world.size - 1}; more is not there on {others} "
        f"and 1 on rank {world.size - 1}. Use one command"
    )
    assert len(set(gather_objects(world, str(caught.value)))) == 1


def test_models_that_differ(world: World) -> None:
    check_same_model(world, torch.nn.Linear(3, 2))
    if world.size > 1:
        with pytest.raises(DivergenceError, match=r"parameter weight is 2x3 float32 on rank.* and 2x4 float32 on rank"):
            check_same_model(world, torch.nn.Linear(3 + (world.rank == world.size - 1), 2))


def test_who_has_what() -> None:
    assert who_has_what(["a", "b", "a", "a", "c"]) == "a on ranks 0, 2, 3 and b on rank 1 and c on rank 4"


def fail_together(*apps: Sequence[str | Path], cwd: Path) -> str:
    """Run these, each `-np N command`, as one job, which must fail; returns its one message."""
    words = [word for app in apps for word in (":", *app)][1:]
    result = run_program([*LAUNCHERS["mpirun"], *words], cwd=cwd)
    assert result.returncode != 0, result.stdout
    messages = [line for line in result.stderr.splitlines() if "hvdkit: " in line]
    assert len(messages) == 1 and "Traceback" not in result.stderr, result.stderr
    return messages[0]


@pytest.mark.launch
def test_other_options_on_one_rank(tmp_path: Path) -> None:
    write_text(tmp_path / "text")
    train = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "hvdkit.train", "--data", "text", "--model", "gpt-toy"]
    said = fail_together(
        ["-np", "2", *train, "--lr", "0.001"],
        ["-np", "1", *train, "--lr", "0.002", "--local", "sgd"],
        cwd=tmp_path,
    )
    assert "--lr is 0.001 on ranks 0, 1 and 0.002 on rank 2" in said
    assert "--local is none on ranks 0, 1 and sgd on rank 2" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.launch
def test_other_process_sets_on_one_rank(tmp_path: Path) -> None:
    """Which Horovod would hang on when it starts."""
    train = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "hvdkit.train", "--model", "gpt-toy", "--local", "sgd"]
    said = fail_together(
        ["-np", "1", *train, "--local-level", "all"], ["-np", "1", *train, "--local-level", "nodes"], cwd=tmp_path
    )
    assert "process_sets is None on rank 0 and 'dynamic' on rank 1" in said and "--local-level nodes" in said


@pytest.mark.launch
def test_other_sources_on_one_rank(tmp_path: Path) -> None:
    write_text(tmp_path / "text")
    shutil.copytree(ROOT / "hvdkit", tmp_path / "copy" / "hvdkit", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "copy" / "hvdkit" / "train" / "loss.py").open("a") as file:
        file.write("# changed\n")
    train = [sys.executable, "-m", "hvdkit.train", "--data", "text", "--model", "gpt-toy"]
    said = fail_together(
        ["-np", "1", "env", f"PYTHONPATH={ROOT}", *train],
        ["-np", "1", "env", f"PYTHONPATH={tmp_path / 'copy'}", *train],
        cwd=tmp_path,
    )
    assert "ranks disagree: hvdkit/train/loss.py is version " in said and "; " not in said.split("ranks disagree")[1]
