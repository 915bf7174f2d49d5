"""Numbers for machines: metrics.jsonl, and TensorBoard on request. Written by rank 0."""

import json
from pathlib import Path
from typing import Any


class Metrics:
    """Appends one JSON object per line to `folder`/metrics.jsonl; numbers also go to TensorBoard if asked."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def write(self, step: int, **values: float | int | str) -> None:
        """One line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
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
