"""What a finished run has come to, to the bit: its newest checkpoint's tensors and its losses."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdkit.checkpoint import find_checkpoint, load_checkpoint


@dataclass(frozen=True)
class Result:
    """Of a run."""

    step: int
    tensors: dict[str, str]
    """Hashes of the files that hold tensors: parameters, the optimizer's state, the states of generators."""
    losses: dict[str, list[float]]
    """Of each step, training and validation."""

    def differences(self, other: "Result") -> list[str]:
        """What is not the same, in words."""
        found = [] if self.step == other.step else [f"the last checkpoint is of step {self.step}, not {other.step}"]
        for name in sorted(self.tensors.keys() | other.tensors.keys()):
            if self.tensors.get(name) != other.tensors.get(name):
                found.append(f"{name} differs")
        for step in sorted(self.losses.keys() | other.losses.keys(), key=int):
            if self.losses.get(step) != other.losses.get(step):
                found.append(f"losses of step {step}: {self.losses.get(step)}, not {other.losses.get(step)}")
        return found


def read_result(run: Path) -> Result:
    """Of the run in the folder `run`; verifies its checkpoint."""
    checkpoint = load_checkpoint(find_checkpoint(run))
    tensors = {
        name: written.xxh3_128
        for name, written in checkpoint.manifest.files.items()
        if name.endswith(".safetensors")
    }  # fmt: skip
    losses: dict[str, list[float]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line: dict[str, Any] = json.loads(text)
        kept = [line[key] for key in ("loss", "validation_loss") if key in line]
        losses.setdefault(str(line["step"]), []).extend(kept)
    return Result(checkpoint.manifest.step, tensors, losses)


def store(result: Result, path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(asdict(result)), encoding="utf-8")


def restore(path: Path) -> Result:
    """The inverse."""
    return Result(**json.loads(path.read_text(encoding="utf-8")))
