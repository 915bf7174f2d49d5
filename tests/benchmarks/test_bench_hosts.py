"""The bound between hosts, and a small run of the benchmark on hosts of namespaces."""

import sys
from pathlib import Path

import pytest

from benchmarks.bench_hosts import count_repeats, wire_bound_s
from tests.benchmarks.drivers import run_driver
from tests.cluster.hosts import why_not
from tests.cluster.link import why_no_limit
from tests.jobs import BIN, ROOT, run_program, succeed


def test_the_bound_of_two_hosts() -> None:
    assert wire_bound_s(32 * 2**20, 1e9) == pytest.approx(0.268, abs=5e-4)
    assert wire_bound_s(64 * 2**10, 1e8) == pytest.approx(0.00524, abs=5e-6)
    assert [count_repeats(2**20, 1e9, budget_s) for budget_s in (0.01, 0.25, 100)] == [3, 9, 20]


@pytest.mark.launch
def test_without_tools_it_is_skipped_with_the_reason() -> None:
    result = succeed(run_program([sys.executable, ROOT / "benchmarks" / "bench_hosts.py"], env={"PATH": str(BIN)}))
    assert result.stdout.startswith("skipped: ") and ("root" in result.stdout or "ip, " in result.stdout)


@pytest.mark.launch
@pytest.mark.hosts
def test_a_small_run(tmp_path: Path) -> None:
    reason = why_not() or why_no_limit()
    if reason:
        pytest.skip(reason)
    words = ["--megabits", "100", "--kib", "2048", "--budget", "0", "--rounds", "1", "--libraries", "openmpi",
             "hvdkit-horovod", "hvdkit", "--arms", "hvdkit", "--model", "toy", "--steps", "1"]  # fmt: skip
    printed, (result,) = run_driver("hosts", tmp_path, *words)
    algorithms = [record["algorithm"] for record in result["all_reduce"]]
    assert algorithms[:3] == ["openmpi", "hvdkit horovod", "hvdkit mpi"]
    for record in result["all_reduce"]:
        # No faster than the wire: the links are as slow as they were told to be.
        assert record["n"] == 3 and record["median_s"] > 0.95 * record["bound_s"] > 0.1
    assert [record["arm"] for record in result["step"]] == ["hvdkit"]
    assert "2 hosts x 2 ranks, 100 Mbit/s" in printed
