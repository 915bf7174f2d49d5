"""The arms with sharded models train what the others train; their table has a ratio to each peer."""

from pathlib import Path

import pytest

from tests.benchmarks.drivers import run_driver


@pytest.mark.launch
def test_every_arm_trains_the_same(tmp_path: Path) -> None:
    arms = ["local", "ddp-zero", "fsdp2", "shard1", "shard1-shared", "shard2", "shard3"]
    words = ["--models", "toy", "--ranks", "2", "--rounds", "1", "--steps", "2", "--arms", *arms]
    printed, (records,) = run_driver("sharding", tmp_path, *words)  # which compares the arms' losses
    assert [record["arm"] for record in records] == arms
    assert "of DDP, ZeroRedundancyOptimizer" in printed and "hvdkit stage 3" in printed
    assert "of FSDP2" in (tmp_path / "sharding.md").read_text()
