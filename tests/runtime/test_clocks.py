"""Durations come from a clock that nobody sets: the time of day may jump in the middle of a job."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "hvdkit"
MOMENTS = {
    "launch/account.py": "when something happened, for a log",
    "runtime/watch/collectives.py": "where the timeline has its zero",
}
"""Who may ask what time it is."""


def test_the_time_of_day_measures_nothing() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            taken = isinstance(node, ast.ImportFrom) and node.module == "time"
            names = {name.name for name in node.names} if isinstance(node, ast.ImportFrom) and taken else set()
            if (
                text in ("time.time", "time.time_ns", "datetime.now")
                or names & {"time", "time_ns"}
                or text.endswith(".create_time")
            ):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == MOMENTS.keys()
