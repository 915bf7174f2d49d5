"""Training configurations in YAML, and the small languages inside them."""

from pathlib import Path

import pytest

from hvdkit.errors import ConfigError
from hvdkit.local import parse_schedule
from hvdkit.optim.compression import parse_compression
from hvdkit.train.config import TrainConfig, parse
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import BILLION, as_yaml, changed_trees, files

CONFIGURATIONS = [
    {"steps": 20, "lr": 0.001, "data": ["a", "b/*.txt"], "skip_bad": True, "model": "gpt-mini"},
    {"local": "diloco", "sync_every": "10@0,50@200", "outer_compression": "int8", "outer_lr": 0.5},
    {"divide": ["a", "b"], "common_steps": 5, "steps": 10, "merge_rules": "average,ties"},
    {"compression": "topk:ratio=0.01", "sharding": 0, "precision": "bf16", "scaling": "strong", "threads": 2},
    {"tokenizer": "bpe", "vocab_size": 1000, "sample_prompt": "int *p = &x;", "resume": "runs/a", "out": None},
]


@pytest.mark.timeout(0)
def test_configuration_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        parse(["--config", str(path)]).write(tmp_path / "again.yaml")

    fuzz("configurations", files(changed_trees(CONFIGURATIONS), as_yaml), read, ConfigError)


@pytest.mark.timeout(0)
def test_schedules_and_compressions() -> None:
    valid = [
        ["10@0,50@200", "adaptive:min=16,max=256,drift=0.1,cost=0.05", "50"],
        ["topk:ratio=0.01", "powersgd:rank=4", "int8"],
    ]

    def read(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        try:
            parse_schedule(text)
        except ValueError:
            parse_compression(text)

    texts = changed_trees([text for texts in valid for text in texts], 1).map(
        lambda tree: str(tree)[:9000].encode(errors="replace")
    )
    fuzz("schedules and compressions", files(texts, lambda data: data), read, ValueError, ConfigError)


@pytest.mark.parametrize(
    "text",
    [
        BILLION.decode(),
        "steps: '" + "[" * 3000 + "'",
        "skip_bad: '[&a [x, x, x], &b [*a, *a, *a], [*b, *b, *b]]'",
        "lr: 1e400",
        "steps: 0x" + "f" * 9000,
        "seed: !!bool x",
        "data: " + "[" * 3000,
        "lr: 2001-13-45",
        "- 1",
        "data: {data: [a], steps: 20}\nsteps: 20",
        "divide: [{a: 1}]",
        "steps: null",
        "tokenizer: null",
        "tokenizer: " + "\u00e9" * 200,
    ],
    ids=range(14),
)
def test_configurations_that_once_broke_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(path)])
    assert len(str(caught.value)) < 5000


def test_a_prompt_may_look_like_aliases(tmp_path: Path) -> None:
    config = TrainConfig(sample_prompt="int *p = &x; [*p]")
    config.write(tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config
