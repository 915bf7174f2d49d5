"""Differences and bytes against their definitions; a small run is what one process makes of the same batches."""

import math
from pathlib import Path

import pytest

from benchmarks.bench_compression import Compared, Run, compare, conclude, plan, read_run, table
from hvdkit.runtime import World
from hvdkit.train.config import TrainConfig
from hvdkit.train.job import Job
from tests.benchmarks.drivers import run_driver
from tests.train.runs import losses, write_text


def run(compression: str, end: float, bytes_per_step: float = 100.0, seed: int = 0) -> Run:
    return Run(compression, seed, {5: 3.0, 10: end}, {0: 5.0, 4: 4.0, 6: 3.0, 10: end}, bytes_per_step)


def compared() -> list[Compared]:
    return compare([run("none", 2.0), run("none", 1.98, seed=1), run("int8", 2.01, 25.0), run("topk", 2.5, 2.0)])


def test_each_compression_runs_once_and_none_with_every_seed() -> None:
    assert plan(["fp16", "none", "int8", "fp16"], [3, 4]) == [("none", 3), ("none", 4), ("fp16", 3), ("int8", 3)]


def test_a_run_is_read_from_its_metrics() -> None:
    lines = [
        {"step": 0, "validation_loss": 5.0},
        {"step": 5, "loss": 3.0, "bytes_per_step": 120.0},
        {"step": 10, "loss": 2.5, "bytes_per_step": 100.0},
        {"step": 10, "validation_loss": 2.0},
    ]
    found = read_run(TrainConfig(compression="int8", seed=7), lines)
    assert found == Run("int8", 7, {5: 3.0, 10: 2.5}, {0: 5.0, 10: 2.0}, 100.0)
    assert found.end == 2.0


def test_differences_are_from_the_first_run_without_compression() -> None:
    _, other_seed, int8, topk = compared()
    assert other_seed.name == "none, seed 1" and other_seed.difference_percent[10] == pytest.approx(-1.0)
    assert int8.difference_percent == pytest.approx({0: 0, 4: 0, 6: 0, 10: 0.5}) and int8.times_fewer_bytes == 4
    assert topk.difference_percent[10] == pytest.approx(25.0) and topk.times_fewer_bytes == 50


def test_the_table_has_start_middle_and_end() -> None:
    header, rows = table(compared())
    assert header[1:4] == ["loss at step 0", "loss at step 4", "loss at step 10"]
    assert rows[0][4:] == ["", "0.1", "1.00"] and rows[2] == [
        "int8",
        "5.0000",
        "4.0000",
        "2.0100",
        "+0.50%",
        "0.0",
        "4.00",
    ]


def test_the_sentence_is_derived() -> None:
    assert conclude(compared()) == (
        "Another seed alone moves the end by up to 1.00%. Not worse by more than that: int8. "
        "Worse by more: topk (+25.0%)."
    )
    assert conclude(compare([run("none", 2.0), run("fp16", 2.0)])).startswith("One seed only")


@pytest.mark.launch
def test_a_small_run(world: World, tmp_path: Path) -> None:
    """Losses against one process on the union of the batches; bytes against closed forms."""
    data = write_text(tmp_path / "text", words=3000)
    small = ["--model", "gpt-toy", "--context", "16", "--batch-size", "4", "--steps", "4", "--data", str(data)]
    words = [*small, "--seeds", "0", "--compressions", "fp16", "topk:ratio=0.1"]
    printed, (records,) = run_driver("compression", tmp_path / "results", *words)
    plain, half, few = records
    assert [record["name"] for record in records] == ["none", "fp16", "topk:ratio=0.1"]
    assert all(math.isfinite(loss) for record in records for loss in record["validation_loss"].values())
    values = plain["bytes_per_step"] / 4
    assert half["bytes_per_step"] == 2 * values and half["times_fewer_bytes"] == 2
    # 8 bytes for each chosen value; every bucket rounds their number up.
    assert 0.8 * values <= few["bytes_per_step"] < 0.8 * values + 100
    assert half["difference_percent"]["4"] == pytest.approx(0, abs=0.1)

    alone = TrainConfig(data=[str(data)], model="gpt-toy", context=16, batch_size=8, scaling="strong", steps=4,
                        warmup_steps=1, eval_every=1, eval_batches=16, log_every=1, checkpoint_every=0,
                        sample_tokens=0, out=str(tmp_path / "alone"))  # fmt: skip
    Job(world, alone).run()
    for key in ("loss", "validation_loss"):
        wanted = {str(step): loss for step, loss in losses(tmp_path / "alone", key).items()}
        assert plain[key] == pytest.approx(wanted, rel=1e-5)
    page = (tmp_path / "results" / "compression.md").read_text()
    assert f"{plain['validation_loss']['4']:.4f}" in page and "One seed only" in page and "One seed only" in printed
