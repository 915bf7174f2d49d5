"""Runs the commands of ARTICLE.md, one after another, and says how long each took."""

import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT_S = 120


class Row(NamedTuple):
    """One idea and the command that shows it."""

    idea: str
    command: str


def rows() -> list[Row]:
    """Those of ARTICLE.md that have a command."""
    found = []
    for line in (ROOT / "ARTICLE.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[2].startswith("`"):
            found.append(Row(cells[0], cells[2].strip("`")))
    return found


def run(row: Row, out: Path) -> subprocess.CompletedProcess[str]:
    """Run one command, its files in `out`, which must not exist; raises TimeoutExpired after two minutes."""
    words = shlex.split(row.command.replace("{out}", str(out)))
    return subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S)


def main() -> None:
    """Run all, show what each prints, stop at the first that fails."""
    for number, row in enumerate(rows()):
        print(f"== {row.idea}\n$ {row.command}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            done = run(row, Path(folder) / f"article-{number}")
        print(f"{done.stdout}-- {time.perf_counter() - start:.0f} s\n", flush=True)
        if done.returncode:
            sys.exit(f"{row.idea}: the command ended with status {done.returncode}")


if __name__ == "__main__":
    main()
