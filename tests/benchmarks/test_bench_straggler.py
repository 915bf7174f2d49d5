"""What the straggler benchmark concludes follows from its numbers; a small run of it works."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_straggler import ALONE, SITUATIONS, Findings, conclude, summarise
from tests.benchmarks.drivers import run_driver


def records(medians_ms: dict[str, tuple[float, float, float]], spread_ms: float = 0.1) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "situation": situation, "median_s": median / 1e3,
         "quartiles_s": [(median - spread_ms) / 1e3, (median + spread_ms) / 1e3]}
        for arm, medians in medians_ms.items()
        for situation, median in zip(SITUATIONS, medians, strict=True)
    ]  # fmt: skip


def test_a_round_is_from_the_first_start_to_the_last_end() -> None:
    spans = [[(1.0, 3.0)], [(1.5, 2.0)]]
    reports = [{"spans": {"64": {"ring": {"even": mine}}}} for mine in spans]
    (record,) = summarise(2, reports)
    assert record["median_s"] == 2.0 and record["bytes"] == 64


def test_added_delay_is_what_the_straggler_alone_does_not_explain() -> None:
    findings = Findings(records({ALONE: (10, 30, 31), "ring": (12, 37, 31)}))
    assert findings.delay_s(ALONE, "first slow") == pytest.approx(0.020)
    assert findings.added_s("ring", "first slow") == pytest.approx(0.005)
    assert findings.added_s("ring", "last slow") == pytest.approx(-0.002)


@pytest.mark.parametrize(
    "ring, tree, verdict",
    [
        ((13, 32, 33), (12, 35, 36), "holds here"),
        ((12, 35, 36), (13, 32, 33), "does not hold here"),
        ((13, 32, 33), (12, 32.1, 36), "holds in 2 of 3 situations"),
        ((13, 33, 33), (13.05, 33, 33.1), "shows no effect here"),
        ((13, 33, 33), (12, 32, 33.1), "holds in 1 of 3 situations"),
    ],
)
def test_the_sentence_is_derived(ring: tuple[float, ...], tree: tuple[float, ...], verdict: str) -> None:
    sentence = conclude(Findings(records({ALONE: (10, 30, 30), "ring": ring, "tree": tree})))  # type: ignore[dict-item]
    assert sentence.startswith(f"The claim that ring suits uneven and tree even ranks {verdict}.")
    assert f"ring {ring[0]:.2f} ms, tree {tree[0]:.2f} ms" in sentence
    assert f"rounds: even {'ring' if ring[0] < tree[0] else 'tree'}" in sentence


def test_nothing_is_said_without_both() -> None:
    assert "nothing is said" in conclude(Findings(records({ALONE: (1, 2, 3), "ring": (1, 2, 3)})))


@pytest.mark.launch
def test_a_slow_rank_makes_rounds_longer(tmp_path: Path) -> None:
    words = ["--ranks", "2", "--rounds", "3", "--kib", "4", "--work-ms", "2", "--factor", "40"]
    _, (result,) = run_driver("straggler", tmp_path, *words)
    rounds = {(record["arm"], record["situation"]): record["median_s"] for record in result["rounds"]}
    assert {arm for arm, _ in rounds} >= {ALONE, "horovod"}
    for arm in {arm for arm, _ in rounds}:
        assert min(rounds[arm, "first slow"], rounds[arm, "last slow"]) > rounds[arm, "even"]
