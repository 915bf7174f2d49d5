"""Runs a benchmark as `make bench-NAME` does, with options that keep it small."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.jobs import ROOT, run_program, succeed


def run_driver(name: str, results: Path, *words: str, timeout_s: float = 250) -> tuple[str, list[Any]]:
    """What benchmarks/bench_NAME.py printed, and the `results` of its JSON lines; its picture must be there."""
    script = ROOT / "benchmarks" / f"bench_{name}.py"
    command = [sys.executable, script, *words, "--results", results]
    printed = succeed(run_program(command, timeout_s=timeout_s)).stdout
    records = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert all(record["benchmark"] == name and record["versions"]["torch"] for record in records)
    assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return printed, [record["results"] for record in records]
