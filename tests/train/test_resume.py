"""A run that goes on from a checkpoint is the run that was never interrupted."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdkit.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from hvdkit.contract import ATTEMPT, RUN_NAME
from hvdkit.errors import CheckpointError, ConfigError
from hvdkit.models import load_model
from hvdkit.models.state import read_tensors
from hvdkit.runtime import World, gather_objects, launch_info
from hvdkit.train.__main__ import read_configuration
from hvdkit.train.attempt import for_attempt
from hvdkit.train.config import TrainConfig
from hvdkit.train.ending import EndedEarlyError, EndRequest
from hvdkit.train.job import Job
from hvdkit.train.loss import evaluate
from tests.train.runs import configure, losses, write_text_together


def run(world: World, config: TrainConfig) -> Job:
    job = Job(world, config)
    job.run()
    return job


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "tests.train.runs:WithDropout"},
        {"compression": "int8"},
        {"compression": "topk:ratio=0.1"},
        {"compression": "powersgd:rank=2"},
        {"sharding": 1},
        {"sharding": 3},
        {"checkpoint_async": True},
    ],
    ids=str,
)
def test_losses_and_weights_to_the_bit(world: World, shared_path: Path, options: dict[str, Any]) -> None:
    """Dropout, AdamW's moments, what compression has not sent, learning rate and the place in the data all go on;
    gradients add up in one order."""
    data = write_text_together(world, shared_path / "text")
    whole = run(world, configure(data, shared_path / "whole", checkpoint_every=5, keep=0, **options))
    checkpoint = shared_path / "whole" / "checkpoints" / "step-00000005"
    resumed = run(world, read_configuration(["--resume", str(checkpoint), "--out", str(shared_path / "resumed")]))
    # Under Gloo, Horovod's engine adds three ranks in an order of its own.
    tolerance = 0.0 if world.size <= 2 or world.backend == "mpi" else 1e-12
    mine, theirs = (
        read_tensors(find_checkpoint(job.folder) / "model" / "model.safetensors") for job in (resumed, whole)
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=tolerance)
    if world.is_root:
        wanted = {step: loss for step, loss in losses(shared_path / "whole").items() if step > 5}
        found = losses(shared_path / "resumed")
        assert found.keys() == wanted.keys()
        assert max(abs(found[step] - wanted[step]) for step in wanted) <= tolerance


def test_a_run_folder_goes_on_in_place(world: World, shared_path: Path) -> None:
    """As after a crash at step 7: the newest checkpoint is of step 5, and the run folder is the argument."""
    data, folder = write_text_together(world, shared_path / "text"), shared_path / "run"
    config = configure(data, folder, steps=10, checkpoint_every=5, keep=0)
    run(world, config)
    wanted = losses(folder) if world.is_root else {}
    with pytest.raises(
        CheckpointError, match="went on to step-00000010 after step-00000005: resume that, or name a new"
    ):
        Job(world, read_configuration(["--resume", str(folder / "checkpoints" / "step-00000005")]))
    if world.is_root:
        shutil.rmtree(folder / "checkpoints" / "step-00000010")
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[:8]))
    gather_objects(world, None)
    job = run(world, read_configuration(["--resume", str(folder)]))
    assert job.folder == folder and job.loop.step == 10
    if world.is_root:
        text = (folder / "metrics.jsonl").read_text().splitlines()
        steps = [line for line in text if '"loss"' in line]
        assert len(steps) == 10, "what the lost steps had written is written once"
        for step, loss in losses(folder).items():
            assert abs(loss - wanted[step]) < 1e-12


def test_more_steps_than_before(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    run(world, configure(data, shared_path / "run", steps=4))
    with pytest.raises(ConfigError, match="has done 4 steps, more than --steps 3"):
        Job(world, read_configuration(["--resume", str(shared_path / "run"), "--steps", "3"]))
    words = ["--resume", str(shared_path / "run"), "--steps", "6"]
    assert run(world, read_configuration(words)).loop.step == 6


def test_the_last_evaluation_is_made_up_for(world: World, shared_path: Path) -> None:
    """A run that ends behind its last step is saved by then; resumed it evaluates, once, on all that is held out."""
    data = write_text_together(world, shared_path / "text", words=6000)
    folder = shared_path / "run"
    config = configure(data, folder, steps=3, eval_batches=1, eval_every=1)
    job = run(world, config)
    everything = evaluate(world, job.model, job.held_out, config.batch_size).mean()
    assert job.validation_loss == pytest.approx(job.corpus.nats_per_byte(everything), abs=1e-9)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    evaluations = [line for line in map(json.loads, whole.splitlines()) if "validation_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 1, 2, 3, 3]
    assert len({line["validation_targets"] for line in evaluations}) == 2
    manifest = load_checkpoint(find_checkpoint(folder)).manifest
    assert manifest.validation_loss == evaluations[-2]["validation_loss"], "on as many as those before it"
    gather_objects(world, None)
    for left in (
        whole.encode(),
        "".join(whole.splitlines(keepends=True)[:-1]).encode() + b'{"step": 3, "a": "\xed\xa0',
    ):
        if world.is_root:
            path.write_bytes(left)
        gather_objects(world, None)
        again = run(world, read_configuration(["--resume", str(folder)]))
        assert again.loop.step == 3 and again.validation_loss == pytest.approx(job.validation_loss, abs=1e-12)
        assert [json.loads(line).keys() for line in path.read_text().splitlines()] == [
            json.loads(line).keys() for line in whole.splitlines()
        ]
        gather_objects(world, None)
    run(world, read_configuration(["--resume", str(folder), "--out", str(shared_path / "other")]))
    assert load_checkpoint(find_checkpoint(shared_path / "other")).manifest.step == 3


def test_a_run_is_told_to_end_in_its_last_evaluation(
    world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has saved by then, and ends at once, on all ranks."""
    data = write_text_together(world, shared_path / "text", words=6000)
    config = configure(data, shared_path / "run", steps=2, eval_batches=1)
    end = EndRequest()
    job = Job(world, config, end=end)
    said: list[str] = []

    def say(text: str = "") -> None:
        said.append(text)
        if "evaluating on all" in text and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(job.reporter, "say", say)
    with end.heeded(), pytest.raises(EndedEarlyError):
        job.run()
    assert said[-1].startswith("SIGTERM at step 2: saved, go on with"), said
    saved = load_checkpoint(find_checkpoint(shared_path / "run"))
    assert saved.manifest.step == 2 and len(list_checkpoints(shared_path / "run" / "checkpoints")) == 1
    del job  # and with it the lock on the folder
    again = run(world, read_configuration(["--resume", str(shared_path / "run")]))
    assert again.loop.step == 2 and math.isfinite(again.validation_loss)


def test_what_an_attempt_left_without_a_manifest_is_in_nobodys_way(
    world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_text_together(world, shared_path / "text")
    damaged = shared_path / "run" / "checkpoints" / "step-00000002"
    if world.is_root:
        damaged.mkdir(parents=True)
        (damaged / "common.json").write_text("{}")
    gather_objects(world, None)
    monkeypatch.setenv(RUN_NAME, "a-test")
    monkeypatch.setenv(ATTEMPT, "1")
    config = for_attempt(configure(data, shared_path / "run", steps=2), launch_info())
    assert run(world, config).loop.step == 2
    assert load_checkpoint(damaged).manifest.step == 2
    assert (damaged.with_name("step-00000002.damaged") / "common.json").read_text() == "{}"


def test_checkpoint_of_another_model(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    run(world, configure(data, shared_path / "run", steps=2))
    words = [
        "--resume",
        str(shared_path / "run"),
        "--steps",
        "3",
        "--model",
        "gpt-mini",
        "--out",
        str(shared_path / "other"),
    ]
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Job(world, read_configuration(words))
    assert not (shared_path / "other").exists()


def test_a_damaged_checkpoint_is_refused(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    run(world, configure(data, shared_path / "run", steps=2))
    (checkpoint,) = (shared_path / "run" / "checkpoints").iterdir()
    if world.is_root:
        weights = checkpoint / "model" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    gather_objects(world, None)
    with pytest.raises(CheckpointError, match="damaged"):
        Job(world, read_configuration(["--resume", str(shared_path / "run")]))


def test_init_from_takes_weights_and_tokenizer(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    first = run(world, configure(data, shared_path / "first", steps=4))
    # --model does not count then, neither now nor when the run is resumed.
    config = configure(data, shared_path / "second", model="gpt-mini", init_from=str(shared_path / "first"), steps=1)
    second = Job(world, config)
    assert second.loop.step == 0
    for mine, theirs in zip(second.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    saved = load_model(load_checkpoint(next((shared_path / "first" / "checkpoints").iterdir())).model)
    for mine, theirs in zip(saved.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine.double(), theirs)
    second.run()
    resumed = Job(world, read_configuration(["--resume", str(shared_path / "second"), "--steps", "2"]))
    assert resumed.model.name == "gpt-toy" and resumed.loop.step == 1
    for mine, theirs in zip(resumed.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_that_still_goes_on_is_not_taken_over(world: World, shared_path: Path) -> None:
    data, folder = write_text_together(world, shared_path / "text"), shared_path / "run"
    run(world, configure(data, folder, steps=2))
    first = Job(world, read_configuration(["--resume", str(folder), "--steps", "3"]))
    with pytest.raises(ConfigError, match="run is being written by another job that still runs"):
        Job(world, read_configuration(["--resume", str(folder), "--steps", "4"]))
    first.run()
    assert run(world, read_configuration(["--resume", str(folder), "--steps", "4"])).loop.step == 4
