"""Numbers for machines: metrics.jsonl, and TensorBoard on request. Written by rank 0."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Metrics:
    """Appends one JSON object per line to `folder`/metrics.jsonl; numbers also go to TensorBoard if asked.

    Lines of steps after `first_step` are dropped first: a run that goes on from a checkpoint makes them again. What the
    last line says, but for the seconds, is not written again. Numbers that are not finite are null there.
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
        if _says(line) == _says(self._last):
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
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _strict(value: float | int | str) -> float | int | str | None:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _says(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds"}


def _cut(path: Path, last_step: int) -> dict[str, Any]:
    """Drop the lines of later steps; returns the last one that stays, {} if none does."""
    if not path.exists():
        return {}
    kept = []
    last: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            continue  # the line that was being written when the run was killed
        step = item.get("step") if isinstance(item, dict) else None
        if not isinstance(step, int) or step <= last_step:  # someone else's lines stay
            kept.append(line + "\n")
            last = item if isinstance(item, dict) else {}
    beside = path.with_suffix(".part")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(path)
    return last
