"""One dataclass behind the command line and the YAML file."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hvdkit.errors import ConfigError
from hvdkit.train.config import TrainConfig, parse
from tests.jobs import run_program, succeed
from tests.train.runs import as_words, configure


def test_defaults_are_the_dataclass() -> None:
    assert parse([]) == TrainConfig()


def test_command_line_and_yaml_say_the_same(tmp_path: Path) -> None:
    config = configure(tmp_path, tmp_path / "run", lr=3e-4, skip_bad=True, eval_every=0, precision="bf16")
    assert parse(as_words(config)) == config
    config.write(tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == config
    over = parse(["--config", str(tmp_path / "config.yaml"), "--lr", "0.5"])
    assert (over.lr, over.steps, over.out) == (0.5, config.steps, None)


def test_every_option_has_help() -> None:
    for item in fields(TrainConfig):
        assert item.metadata["help"], item.name


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--batch-size", "0"], "--batch-size 0 must be 1 or more"),
        (["--steps", "-1", "--lr", "0"], "--steps -1 must be 1 or more; --lr 0.0 must be more than 0"),
        (["--steps", "many"], "steps"),
        (["--precision", "fp8"], "precision"),
        (["--no-such-option", "1"], "no-such-option"),
        (["--config", "/no/such/file.yaml"], "file.yaml"),
        (["--validation-share", "0.9"], "validation_share"),
        (["--tokenizer", "/no/such/folder"], "tokenizer"),
        (["--warmup-steps", "-3"], "--warmup-steps -3 must be 0 or more"),
    ],
)
def test_bad_options_are_one_sentence(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_yaml_file_with_an_unknown_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("stesp: 3\n")
    with pytest.raises(ConfigError, match="stesp"):
        parse(["--config", str(tmp_path / "config.yaml")])


def test_batches_and_rates_over_ranks() -> None:
    """What more ranks change is one option; the table is the documentation's."""
    table = {"weak": (64, 8, 1.0), "weak-linear-lr": (64, 8, 8.0), "weak-sqrt-lr": (64, 8, 8**0.5), "strong": (8, 1, 1)}
    for scaling, (sequences, per_rank, factor) in table.items():
        config = TrainConfig(scaling=scaling, batch_size=8)  # type: ignore[arg-type]
        assert (config.global_batch(8), config.micro_batch(8)) == (sequences, per_rank)
        assert config.peak_lr(8) == pytest.approx(config.lr * factor)


@pytest.mark.launch
def test_help_names_every_option() -> None:
    text = succeed(run_program([sys.executable, "-m", "hvdkit.cli", "train", "--help"])).stdout
    for item in fields(TrainConfig):
        assert f"--{item.name.replace('_', '-')}" in text
