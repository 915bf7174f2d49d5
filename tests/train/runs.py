"""Small training runs for tests: a text, its configuration, and what a run wrote."""

import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdkit.runtime import World, gather_objects
from hvdkit.train.config import TrainConfig

CONTEXT = 16
BATCH = 13
"""A global batch that no number of ranks above 1 divides."""


def write_text(folder: Path, words: int = 260, seed: int = 0) -> Path:
    """Write a text that a model can learn a little of into `folder`, two documents; returns the folder.

    260 words are about 1,450 bytes: 6 global batches of 13 sequences and one of 4 make an epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choose = random.Random(seed)
    vocabulary = ["ring", "tree", "rank", "merge", "shard", "bucket", "wait"]
    for number in (1, 2):
        text = " ".join(choose.choices(vocabulary, k=words // 2))
        (folder / f"part{number}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def write_text_together(world: World, folder: Path, **more: Any) -> Path:
    """`write_text` by rank 0. Collective."""
    if world.is_root:
        write_text(folder, **more)
    gather_objects(world, None)
    return folder


def configure(data: Path, out: Path, **options: Any) -> TrainConfig:
    """A run of 20 exact steps over more than two epochs."""
    usual: dict[str, Any] = {
        "data": [str(data)],
        "model": "gpt-toy",
        "context": CONTEXT,
        "validation_share": 0.1,
        "scaling": "strong",
        "batch_size": BATCH,
        "steps": 20,
        "warmup_steps": 5,
        "precision": "float64",
        "log_every": 1,
        "eval_every": 10,
        "checkpoint_every": 10,
        "sample_tokens": 0,
        "out": str(out),
    }
    return TrainConfig(**{**usual, **options})


def as_words(config: TrainConfig) -> list[str]:
    """The command line that means `config`."""
    usual = TrainConfig()
    words: list[str] = []
    for name, value in vars(config).items():
        if value != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    return words


def losses(folder: Path, key: str = "loss") -> dict[int, float]:
    """What metrics.jsonl of the run in `folder` says, by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def assert_same_losses(found: dict[int, float], wanted: dict[int, float], tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for step, loss in wanted.items():
        assert abs(found[step] - loss) <= tolerance, (step, found[step], loss)


class WithDropout(nn.Module):
    """A model of one's own, as `--model tests.train.runs:WithDropout` names it."""

    def __init__(self, vocab_size: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 16)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.embedding(tokens)))
        return logits


class Slow(WithDropout):
    """One whose steps take long enough for a test to come in between."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return super().forward(tokens)
