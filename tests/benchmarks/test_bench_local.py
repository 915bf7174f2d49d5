"""The benchmark of local updates trains every arm on equal tokens, and finds when a loss was reached."""

from pathlib import Path

import pytest

from benchmarks.bench_local import seconds_to
from tests.benchmarks.drivers import run_driver


@pytest.mark.launch
def test_arms_and_their_table(tmp_path: Path) -> None:
    words = ["--ranks", "2", "--steps", "60", "--batch-size", "2", "--eval-batches", "4", "--megabits", "0", "--arms",
             "synchronous", "DiLoCo 50", "one worker, DiLoCo 50"]  # fmt: skip
    printed, (records,) = run_driver("local", tmp_path, *words)
    synchronous, diloco, control = records
    assert [point[0] for point in synchronous["losses"]] == [point[0] for point in diloco["losses"]]
    assert 20 < synchronous["bytes_sent"] / diloco["bytes_sent"] < 40  # a round of 50, and the last one
    assert control["ranks"] == 1 and control["bytes_sent"] == 0
    assert "against synchronous" in printed and "against synchronous" in (tmp_path / "local.md").read_text()


def test_when_a_loss_was_reached() -> None:
    losses = [(0, 0.0, 5.0), (10, 1.0, 3.0), (20, 2.0, 2.0), (30, 3.0, 2.5)]
    assert seconds_to(losses, 3.0) == 1.0 and seconds_to(losses, 2.2) == 2.0 and seconds_to(losses, 1.0) is None
