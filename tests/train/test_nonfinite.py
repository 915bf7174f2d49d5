"""NaN in gradients: a step left out is as if its batch had not been, a run that stops names ranks and parameters."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdkit.errors import HvdkitError
from hvdkit.runtime import World, gather_objects
from hvdkit.train.job import Job
from hvdkit.train.loss import LossSum
from hvdkit.train.nonfinite import MOST_IN_A_ROW
from tests.jobs import run_ranks
from tests.train.runs import as_words, configure, losses, write_text, write_text_together
from tests.train.test_local import Simulated

BAD_STEPS = (3, 6)
"""Of the first epoch, in which all steps have equally many passes."""


def bad_at(monkeypatch: pytest.MonkeyPatch, *places: tuple[int, int]) -> None:
    """From now on the model's n-th pass on this rank gives NaN, for each (n, rank)."""
    monkeypatch.setenv("HVDKIT_TEST_BAD", ",".join(f"{number}@{rank}" for number, rank in places))


def make_job(world: World, folder: Path, name: str, **options: Any) -> Job:
    usual = {"model": "tests.train.bad_model:bad", "steps": 9, "on_nonfinite": "skip", "eval_every": 0}
    return Job(world, configure(folder / "text", folder / name, **{**usual, **options}))


def leave_out(job: Job, steps: tuple[int, ...]) -> None:
    """The oracle: at `steps` the job takes the next batch and does nothing with it."""
    take, loop = job.loop._one_step, job.loop

    def one_step() -> tuple[LossSum, int]:
        if loop.step + 1 not in steps:
            return take()
        loop.position = loop.sampler.following(loop.position)
        loop.step += 1
        return LossSum(), 0

    loop._one_step = one_step  # type: ignore[method-assign]


def trained(job: Job) -> dict[str, torch.Tensor]:
    """The parameters, whole on rank 0."""
    with job.aggregation.whole():
        return {name: parameter.detach().clone() for name, parameter in job.model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_norm": 0.0},
        {"accumulate": 2},
        {"strategy": "horovod"},
        {"compression": "fp16"},
        {"compression": "int8"},
        {"compression": "topk:ratio=0.2"},
        {"compression": "powersgd:rank=2"},
        {"sharding": 1},
        {"sharding": 2, "accumulate": 2},
        {"sharding": 3},
    ],
    ids=lambda options: ", ".join(map(str, options.values())) or "plain",
)
def test_a_step_left_out_is_as_if_its_batch_had_not_been(
    world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    write_text_together(world, shared_path / "text")
    passes = options.get("accumulate", 1)
    bad_at(monkeypatch, *((step * passes, step % world.size) for step in BAD_STEPS))
    job = make_job(world, shared_path, "skipping", **options)
    job.run()
    bad_at(monkeypatch)
    oracle = make_job(world, shared_path, "oracle", **options)
    leave_out(oracle, BAD_STEPS)
    oracle.run()
    found, wanted = trained(job), trained(oracle)
    if world.is_root:
        for name, value in wanted.items():
            assert bool(torch.isfinite(value).all()) and torch.equal(found[name], value), name
        assert job.loop.skipped == len(BAD_STEPS)
        lines = (shared_path / "skipping" / "metrics.jsonl").read_text().splitlines()
        counts = [json.loads(line).get("skipped", 0) for line in lines if "tokens" in json.loads(line)]
        assert "NaN" not in "".join(lines) and counts == [0, 0, 1, 1, 1, 2, 2, 2, 2]
        good = {step: loss for step, loss in losses(shared_path / "oracle").items() if step not in BAD_STEPS}
        assert losses(shared_path / "skipping") == good


@pytest.mark.parametrize("sharding", [0, 3])
def test_the_run_stops_on_all_ranks_and_names_what_is_bad(
    world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: int
) -> None:
    write_text_together(world, shared_path / "text")
    bad_at(monkeypatch, (3, world.size - 1))
    job = make_job(world, shared_path, "run", on_nonfinite="stop", sharding=sharding)
    with pytest.raises(HvdkitError) as caught:
        job.run()
    where = f" on rank {world.size - 1} of {world.size}" if world.size > 1 else ""
    text = str(caught.value)
    assert text.startswith(f"step 3: gradients are not finite (norm nan, the loss is nan{where}): inner.")
    assert "and 2 more. The weights are those of step 2." in text and "--on-nonfinite skip" in text
    assert len(set(gather_objects(world, text))) == 1 and job.loop.step == 2
    parameters = trained(job).values()
    assert not world.is_root or all(bool(torch.isfinite(parameter).all()) for parameter in parameters)


def test_too_many_in_a_row_stop_the_run(world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_together(world, shared_path / "text", words=1600)
    first, steps = 3, MOST_IN_A_ROW + 8
    bad_at(monkeypatch, *((step, 0) for step in range(first, steps)))
    job = make_job(world, shared_path, "run", steps=steps)
    with pytest.raises(HvdkitError, match=f"^step {first + MOST_IN_A_ROW}: .* as in the {MOST_IN_A_ROW} steps before"):
        job.run()


def test_nothing_is_looked_at_if_so_asked(
    world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    write_text_together(world, shared_path / "text")
    bad_at(monkeypatch, (3, 0))
    job = make_job(world, shared_path, "run", on_nonfinite="ignore", steps=4)
    job.run()
    assert all(bool(torch.isnan(parameter).any()) for parameter in job.model.parameters())
    assert math.isnan(job.validation_loss) and job.loop.skipped == 0


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["plain", "accumulated"])
def test_in_a_round_the_rank_that_met_it_leaves_the_step_out(
    world: World, shared_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Against a simulation in one process; the step does not count in the mean of the round either."""
    write_text_together(world, shared_path / "text")
    last = world.size - 1
    passes = options.get("accumulate", 1)
    bad_at(monkeypatch, (3 * passes, last), (6 * passes, 0))
    job = make_job(world, shared_path, "run", local="diloco", sync_every=4, steps=8, **options)
    simulated = Simulated(job, world.size)
    job.run()
    bad_at(monkeypatch)
    simulated.run(4, left_out={(3, last), (6, 0)})
    for mine, theirs in zip(job.model.parameters(), simulated.outer.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert job.loop.skipped == 2


@pytest.mark.launch
def test_local_updates_stop_by_the_rank_that_met_it(tmp_path: Path) -> None:
    config = configure(
        write_text(tmp_path / "text"), tmp_path / "run", model="tests.train.bad_model:bad", local="sgd", sync_every=5
    )
    result = run_ranks(3, "-m", "hvdkit.train", *as_words(config), env={"HVDKIT_TEST_BAD": "3@2"})
    assert result.returncode != 0
    messages = [line for line in result.stderr.splitlines() if line.startswith("hvdkit: ")]
    assert len(messages) == 1, result.stderr
    assert messages[0].startswith("hvdkit: rank 2 of 3 failed, the job ends: step 3: gradients are not finite (norm n")
