"""The merge benchmark merges what it says, and its table has times, memory and the bound."""

from pathlib import Path

import pytest

from tests.benchmarks.drivers import run_driver


@pytest.mark.launch
def test_every_rule_is_merged_and_copied(tmp_path: Path) -> None:
    words = ["--parameters", "2e6", "--models", "3", "--no-mergekit", "--rules", "average", "slerp", "ties"]
    printed, (records,) = run_driver("merge", tmp_path, *words)
    assert [record["rule"] for record in records] == ["average", "slerp", "ties"]
    assert all(0 < record["copy_s"] < record["hvdkit_s"] for record in records)
    assert all(record["copy_bytes"] < 50e6 < 100e6 < record["hvdkit_bytes"] < 2e9 for record in records)
    assert "times copying" in printed and "times copying" in (tmp_path / "merge.md").read_text()
