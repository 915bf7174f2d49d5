"""Efficiency and prediction against their formulas; a small run of the scaling benchmark works."""

from pathlib import Path

import pytest

from benchmarks.bench_scaling import evaluate, plan
from tests.benchmarks.drivers import run_driver


def test_weak_keeps_the_rank_and_strong_the_total() -> None:
    assert plan([1, 2, 4], 3, 8) == {"weak": [(1, 3), (2, 3), (4, 3)], "strong": [(1, 8), (2, 4), (4, 2)]}


def test_efficiency_and_prediction_are_as_defined() -> None:
    def job(batch_size: int, mean_s: float, communication_s: float | None = 0.5) -> dict[str, object]:
        return {"mean_s": mean_s, "job_mean_s": [mean_s], "tokens_per_step": 10 * batch_size,
                "communication_s": communication_s}  # fmt: skip

    measured = {
        ("local", 1, 4): job(4, 1.0), ("local", 1, 1): job(1, 0.3),
        ("hvdkit", 1, 4): job(4, 1.1), ("hvdkit", 4, 4): job(4, 2.75), ("hvdkit", 4, 1): job(1, 1.0),
    }  # fmt: skip
    plans = {"weak": [(1, 4), (4, 4)], "strong": [(1, 4), (4, 1)]}
    alone, weak, _, strong = evaluate(plans, measured, threads=1, cores=2)
    assert alone["efficiency"] == alone["compute_efficiency"] == alone["predicted_efficiency"] == 1
    assert weak["tokens_per_s"] == pytest.approx(4 * 40 / 2.75) and weak["efficiency"] == pytest.approx(1.1 / 2.75)
    # Four ranks on two cores take twice as long.
    assert weak["compute_s"] == pytest.approx(2.0) and weak["compute_efficiency"] == pytest.approx(0.5)
    assert weak["predicted_s"] == pytest.approx(2.5) and weak["predicted_efficiency"] == pytest.approx(0.4)
    assert strong["efficiency"] == pytest.approx(1.1 / (4 * 1.0))
    assert strong["predicted_s"] == pytest.approx(2 * 0.3 + 0.5)
    measured["hvdkit", 4, 4]["communication_s"] = None
    unknown = evaluate(plans, measured, threads=1, cores=2)[1]
    assert unknown["predicted_s"] is None and unknown["predicted_efficiency"] is None


@pytest.mark.launch
def test_a_small_run(tmp_path: Path) -> None:
    words = ["--ranks", "1", "2", "--model", "toy", "--batch-size", "1", "--total", "2", "--rounds", "1"]
    printed, (records,) = run_driver("scaling", tmp_path, *words, "--steps", "1")
    points = [(record["mode"], record["ranks"], record["sequences_per_rank"]) for record in records]
    assert points == [("weak", 1, 1), ("weak", 2, 1), ("strong", 1, 2), ("strong", 2, 1)]
    for record in records:
        tokens = record["ranks"] * record["sequences_per_rank"] * 128
        assert record["tokens_per_s"] == pytest.approx(tokens / record["step_s"])
    assert ("predicted ms" in printed) == all(record["predicted_s"] is not None for record in records)
