"""Every command that ARTICLE.md shows works, in under two minutes."""

import shlex
from pathlib import Path

import pytest

from benchmarks.run_article import LIMIT_S, ROOT, Row, rows
from tests.jobs import run_program

pytestmark = [pytest.mark.launch, pytest.mark.timeout(2 * LIMIT_S)]

LOOK_FOR = {"sharding 3": "by the formula, per rank", "sharding 1": "one copy of the weights for all ranks",
            "straggler": "ring suits uneven", "collectives": "measured", "init-from": "done: 3 steps",
            "--local": "of synchronous training's",
            "--divide": "mean of submodels", "Ensemble": "rank 1: tensor([[",
            "--joint false": "coalitions evaluated"}  # fmt: skip


def test_all_rows_are_found() -> None:
    built = (ROOT / "ARTICLE.md").read_text(encoding="utf-8").split("Not built")[0]
    lines = [line for line in built.splitlines() if line.startswith("|")]
    assert len(rows()) == len(lines) - len(("its head", "the line below"))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.idea)
def test_a_row(row: Row, tmp_path: Path) -> None:
    root = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe")
    words = shlex.split(row.command.replace("{out}", str(tmp_path / "out")))
    done = run_program(words, timeout_s=LIMIT_S, env=dict.fromkeys(root, "1"))
    assert done.returncode == 0, done.stdout + done.stderr
    for mark, printed in LOOK_FOR.items():
        if mark in row.command:
            assert printed in done.stdout
