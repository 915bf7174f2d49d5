"""What a check says: one row of the doctor's table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`same` is what all hosts of a job must have alike, or empty where they may differ."""

    item: str
    found: str
    state: str
    """`ok`, `warning` (slow, or a part that not everyone needs) or `problem` (training could not work)."""
    remedy: str = ""
    same: str = ""


def ok(item: str, found: str, same: str = "") -> Finding:
    return Finding(item, found, "ok", same=same)


def warning(item: str, found: str, remedy: str, same: str = "") -> Finding:
    return Finding(item, found, "warning", remedy, same)


def problem(item: str, found: str, remedy: str, same: str = "") -> Finding:
    return Finding(item, found, "problem", remedy, same)
