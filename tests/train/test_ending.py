"""A run that is told to end saves and says so by its status; started again it is the run that was never told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvdkit.checkpoint import find_checkpoint, list_checkpoints
from hvdkit.models.state import read_tensors
from hvdkit.runtime import LaunchInfo
from hvdkit.train.attempt import for_attempt
from hvdkit.train.config import TrainConfig
from tests.jobs import ROOT, clean_environ, run_ranks, succeed
from tests.train.runs import as_words, configure, losses, write_text

STEPS = 60


def start(ranks: int, words: list[str]) -> "subprocess.Popen[str]":
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(ranks), sys.executable, *words]
    return subprocess.Popen(
        command, env=clean_environ(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        text = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
        if any(json.loads(line)["step"] >= step for line in text.splitlines() if line.endswith("}")):
            return
        time.sleep(0.02)
    raise AssertionError("the run did not come to its step")


def children(launcher: int) -> list[int]:
    """The ranks of an mpirun, in the order in which it started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == launcher:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.launch
@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGUSR1, {}), (signal.SIGTERM, {"checkpoint_async": True}), (signal.SIGUSR1, {"local": "diloco"})],
    ids=["USR1", "TERM, in the background", "USR1, rounds"],
)
def test_one_rank_is_told(tmp_path: Path, number: signal.Signals, options: dict[str, str | bool]) -> None:
    data = write_text(tmp_path / "text")
    usual = {
        "steps": STEPS,
        "log_every": 2,
        "eval_every": 0,
        "checkpoint_every": 0,
        "model": "tests.train.runs:Slow",
        "strategy": "ring",
    }
    usual["model"] = "tests.train.runs:Slow"
    whole = configure(data, tmp_path / "whole", **{**usual, **options})
    succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(whole)))
    told = tmp_path / "told"
    job = start(2, ["-m", "hvdkit.train", *as_words(configure(data, told, **{**usual, **options}))])
    try:
        wait_for_step(told, 4)
        os.kill(children(job.pid)[-1], number)
        printed, _ = job.communicate(timeout=100)
    finally:
        job.kill()
    assert job.returncode == 75, printed
    assert "Traceback" not in printed and "MPI_ABORT" not in printed
    (saved,) = list_checkpoints(told / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    assert 4 <= step < STEPS, "the test is too slow for the run"
    assert f"{number.name} at step {step}: saved, go on with `--resume {told}` (status 75)" in printed
    succeed(run_ranks(2, "-m", "hvdkit.train", "--resume", told))
    first, second = (find_checkpoint(folder) / "model" / "model.safetensors" for folder in (tmp_path / "whole", told))
    wanted, found = read_tensors(first), read_tensors(second)
    assert all(bool((found[name] == wanted[name]).all()) for name in wanted)
    assert losses(told) == losses(tmp_path / "whole")


def info(attempt: int, name: str | None = "job") -> LaunchInfo:
    return LaunchInfo("mpirun (Open MPI)", size=2, run_name=name, attempt=attempt)


def test_what_an_attempt_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig()
    assert for_attempt(config, info(0, None)) is config, "nobody starts it again"
    assert for_attempt(config, info(0)).out == "runs/job"
    assert for_attempt(TrainConfig(out="here"), info(0)).out == "here"
    again = for_attempt(config, info(1))
    assert (again.out, again.resume) == ("runs/job", None), "nothing was saved: from the beginning, in the same folder"
    for folder in ("runs/job", "here"):
        step = Path(folder) / "checkpoints" / "step-00000005"
        step.mkdir(parents=True)
        (step / "manifest.json").write_text("{}")
        again = for_attempt(TrainConfig(out=None if folder == "runs/job" else folder), info(2))
        assert (again.resume, again.out) == (folder, None)
    named = TrainConfig(resume=str(step))
    assert for_attempt(named, info(0)) is named
    assert for_attempt(named, info(1)).resume == str(tmp_path / "here"), "by then the run has gone on"
    assert for_attempt(TrainConfig(resume="here"), info(1)).resume == "here"
    assert for_attempt(TrainConfig(resume="nowhere"), info(1)).resume == "nowhere"
    other = TrainConfig(resume="elsewhere", out="here")
    assert for_attempt(other, info(0)) == other
    assert (for_attempt(other, info(1)).resume, for_attempt(other, info(1)).out) == ("here", None)
    divided = TrainConfig(divide=[], resume="here")
    assert for_attempt(divided, info(1)) is divided, "it has models and no checkpoints"
    assert for_attempt(TrainConfig(divide=[], out="there"), info(1)).out == "there"
