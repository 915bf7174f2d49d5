"""Training text: JSON Lines and plain files; and the cache of token ids."""

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from hvdkit.data.documents import Reader
from hvdkit.data.sources import TextFile
from hvdkit.data.token_files import read_info
from hvdkit.errors import DataError
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import as_json, changed_trees, files

RECORDS = [
    [{"text": "one"}, {"text": "two ∞", "id": 2}, {"id": 3, "text": ""}],
    [{"body": {"text": "a"}}],
    [{"text": "\n" * 9}],
]
INFO = {"dtype": "<u2", "documents": 2, "train_tokens": 8, "train_bytes": 8, "validation_tokens": 4,
        "validation_bytes": 4, "validation_is_tail": False}  # fmt: skip


def _lines(records: object) -> bytes:
    return b"\n".join(map(as_json, records)) if isinstance(records, list) else as_json(records)


def _read(path: Path) -> None:
    for skip_bad in (False, True):
        for piece in Reader([TextFile(path, "label")], skip_bad=skip_bad):
            piece.text.encode()


@pytest.mark.timeout(0)
def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        list(Reader([TextFile(path, "label")], skip_bad=True))  # leaves out what is wrong, and raises nothing
        _read(path)

    fuzz("JSON Lines", files(changed_trees(RECORDS), _lines), read, DataError)


@pytest.mark.timeout(0)
def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _read(path)

    texts = st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
    fuzz("plain text", files(texts, lambda data: data), read, DataError)


@pytest.mark.timeout(0)
def test_cached_tokens(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(16))
    (tmp_path / "validation.bin").write_bytes(bytes(8))

    def read(data: bytes) -> None:
        (tmp_path / "corpus.json").write_bytes(data)
        info = read_info(tmp_path)
        assert info is None or (info.dtype, info.train_tokens, info.validation_tokens) in (("<u2", 8, 4), ("<u4", 4, 2))

    fuzz("cached tokens", files(changed_trees([INFO]), as_json), read)


@pytest.mark.parametrize(
    "change", [{"dtype": "O"}, {"dtype": "<f2"}, {"train_tokens": 8.0}, {"validation_tokens": True}, {"dtype": ","}]
)
def test_a_cache_of_other_kinds_of_numbers_is_none(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(16))
    (tmp_path / "validation.bin").write_bytes(bytes(8))
    (tmp_path / "corpus.json").write_text(json.dumps(INFO))
    assert read_info(tmp_path) is not None
    (tmp_path / "corpus.json").write_text(json.dumps({**INFO, **change}))
    assert read_info(tmp_path) is None
