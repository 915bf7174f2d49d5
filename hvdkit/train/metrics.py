"""Numbers for machines: metrics.jsonl, and TensorBoard on request. Written by rank 0."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hvdkit.untrusted import parse_json


class Metrics:
    """Appends one JSON object per line to `folder`/metrics.jsonl; numbers also go to TensorBoard if asked.

    Lines of steps after `first_step` are dropped first: a run that goes on from a checkpoint makes them again. An
    evaluation that the last line tells of is not written again. Numbers that are not finite are null there.
    """

    def __init__(self, folder: Path, tensorboard: bool, first_step: int = 0) -> None:
        path = folder / "metrics.jsonl"
        self._last = _cut(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run had drawn beyond `first_step` is hidden.
            self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
                str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None
            )

    def write(self, step: int, **values: float | int | str) -> None:
        """One line."""
        line = {"step": step, **{name: _strict(value) for name, value in values.items()}}
        if _subject(line) == _subject(self._last):
            return
        self._last = line
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run."""
    return [item for _, item in _lines(folder / "metrics.jsonl") if item is not None]


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _subject(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a line tells of: equal for two evaluations of a step on the same text, whose rounding may differ."""
    return line.get("step"), line.get("validation_targets"), frozenset(line)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line with the object that it is, None for other values; without what was being written when a run died."""
    for line in path.read_bytes().splitlines():
        try:
            item = parse_json(line)
            yield line.decode(), item if isinstance(item, dict) else None
        except ValueError:
            continue


def _cut(path: Path, last_step: int) -> dict[str, Any]:
    """Drop the lines of later steps; returns the last one that stays, {} if none does."""
    last: dict[str, Any] = {}
    if not path.exists():
        return last
    kept = []
    for text, item in _lines(path):
        step = None if item is None else item.get("step")
        if not isinstance(step, int) or step <= last_step:  # someone else's lines stay
            last = {name: _strict(value) for name, value in (item or {}).items()}
            kept.append(json.dumps(last) if item is not None else text)
    beside = path.with_suffix(".part")
    beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    beside.replace(path)
    return last
