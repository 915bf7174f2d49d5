"""Model folders: config.json of hvdkit's own models, tokenizer.json and its options."""

import json
from pathlib import Path

import pytest
import torch

from hvdkit.data import load_tokenizer
from hvdkit.data.bpe_tokens import train_bpe
from hvdkit.data.byte_tokens import ByteTokenizer
from hvdkit.data.tokenizer import save_tokenizer
from hvdkit.errors import CheckpointError, DataError
from hvdkit.models import ModelConfig, load_model, save_model
from hvdkit.models.construct import from_config
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import as_json, changed_trees, files

SHAPE = ModelConfig("gpt", layers=1, width=8, heads=2, vocab_size=11, context=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", from_config(SHAPE, "tiny"))
    return tmp_path / "model"


@pytest.mark.timeout(0)
def test_configurations_of_models(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())

    def read(data: bytes) -> None:
        # Without the key it is a Hugging Face folder, which is transformers' to read.
        if b'"hvdkit_model": {' not in data or b'"function"' in data:
            data = b""
        (folder / "config.json").write_bytes(data)
        load_model(folder)

    fuzz(
        "models' config.json",
        files(changed_trees([config["hvdkit_model"]], 2), lambda tree: as_json({**config, "hvdkit_model": tree})),
        read,
        CheckpointError,
    )


@pytest.mark.timeout(0)
def test_tokenizers(tmp_path: Path) -> None:
    trained = train_bpe(["the cat and the dog, the cat and the hat"] * 3, 270)
    tokens = [json.loads(trained.to_json()), json.loads(ByteTokenizer().to_json())]
    save_tokenizer(tmp_path, trained)

    def read(data: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(data)
        tokenizer = load_tokenizer(tmp_path)
        assert len(tokenizer.encode("a cat")) < 1000 and tokenizer.vocab_size < 2**31

    fuzz("tokenizers", files(changed_trees(tokens, 2), as_json), read, DataError)


@pytest.mark.timeout(0)
def test_options_of_tokenizers(tmp_path: Path) -> None:
    trained = train_bpe(["the cat and the dog"] * 3, 262)
    save_tokenizer(tmp_path, trained)
    options = [trained.to_config(), {"eos_token": {"content": "<|endoftext|>"}, "pad_token": None}]

    def read(data: bytes) -> None:
        (tmp_path / "tokenizer_config.json").write_bytes(data)
        load_tokenizer(tmp_path).to_config()

    fuzz("tokenizers' options", files(changed_trees(options, 2), as_json), read, DataError)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 10**9},
        {"width": 2**27, "heads": 2**27},
        {"width": "8"},
        {"layers": 1.0},
        {"context": 10**30},
        {"dropout": "x"},
        {"vocab_size": True},
    ],
)
def test_shapes_that_once_broke_out(change: dict[str, object], folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hvdkit_model": {**config["hvdkit_model"], **change}}))
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_a_model_that_fits_is_read(folder: Path) -> None:
    assert all(torch.isfinite(tensor).all() for tensor in load_model(folder).state_dict().values())
