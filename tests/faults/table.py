"""What a campaign found, as tables for people."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.job import print_table, replacing
from benchmarks.machine import describe_machine

Record = dict[str, Any]
"""Of a finished case: what `campaign.py` writes down of it."""

_HEADER = ("faults", "survived", "ended cleanly", "failed", "s to the job's end", "at most", "steps repeated",
           "at most", "same bits")  # fmt: skip


def print_tables(records: Sequence[Record], title: str) -> list[str]:
    """Print one by kind of fault, by where it struck, and by how the job ran; returns them as Markdown."""
    ways: dict[str, Callable[[Record], str]] = {
        "fault": lambda record: record["kind"],
        "where": lambda record: record["point"],
        "job": lambda record: f"{record['mode']}, {record['launcher']}",
    }
    return [
        print_table(f"{title}, by {name}" if name != "fault" else title, [name, *_HEADER], _rows(records, key))
        for name, key in ways.items()
    ]


def write_page(path: Path, heading: str, command: str, tables: Sequence[str], told: Sequence[str]) -> None:
    """The page of a campaign or soak, beside those of benchmarks."""
    machine = "\n".join(f"- {name}: {value}" for name, value in describe_machine().items())
    head = f"# {heading}\n\nProduced by `{command}`.\n\n{machine}\n"
    with replacing(path) as beside:
        beside.write_text("\n".join([head, *tables, *(f"{line}\n" for line in told)]), encoding="utf-8")


def _rows(records: Sequence[Record], key: Callable[[Record], str]) -> list[list[str]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return [*(_row(name, groups[name]) for name in sorted(groups)), _row("all", records)]


def _row(name: str, records: Sequence[Record]) -> list[str]:
    def count(outcome: str) -> str:
        return str(sum(record["outcome"] == outcome for record in records))

    seconds = [record["seconds"] for record in records if record["seconds"] is not None]
    steps = [record["steps_repeated"] for record in records]
    equal = sum(record["is_equal"] for record in records)
    return [
        name, str(len(records)), count("survived"), count("ended cleanly"), count("FAILED"),
        f"{statistics.median(seconds):.1f}" if seconds else "-", f"{max(seconds):.1f}" if seconds else "-",
        f"{statistics.median(steps):g}", str(max(steps)), f"{equal} of {len(records)}",
    ]  # fmt: skip
