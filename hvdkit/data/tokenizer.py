"""What a tokenizer is, and how one is read back from a folder."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hvdkit.errors import DataError
from hvdkit.untrusted import parse_json

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_VOCABULARY_FILE = "vocab.txt"


class Tokenizer(Protocol):
    """Text to token ids and back. Ids lie in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eot_id(self) -> int:
        """Stands after every document."""

    @property
    def pad_id(self) -> int:
        """Fills up a sample that is too short; the end-of-text id where the vocabulary has none of its own."""

    @property
    def mask_id(self) -> int | None:
        """Hides a token from a masked model; None if the vocabulary has no such id."""

    @property
    def kind(self) -> str:
        """A few words for a person: `bytes`, `BPE of 8192`."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, with nothing added; the names of special tokens in it are ordinary text."""

    def encode_many(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """The ids of each text, in order; quicker than one by one."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; what is not UTF-8 becomes U+FFFD."""

    def to_json(self) -> str:
        """The contents of `tokenizer.json`, in Hugging Face's format; equal tokenizers give equal text."""

    def to_config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says beside it: the names of the special tokens, and what transformers adds."""


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, from which transformers' AutoTokenizer can read it too."""
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(tokenizer.to_config(), indent=1), encoding="utf-8")


def has_tokenizer(folder: Path) -> bool:
    """Whether `load_tokenizer` would find one in `folder`."""
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, CONFIG_FILE, _VOCABULARY_FILE))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder` by hvdkit or by Hugging Face.

    Raises DataError where there is none, or it cannot be read.
    """
    from hvdkit.data.bpe_tokens import BpeTokenizer, from_transformers
    from hvdkit.data.byte_tokens import ByteTokenizer

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        # Older Hugging Face folders hold only the vocabulary; transformers knows how to make the rest of it.
        if has_tokenizer(folder):
            return from_transformers(folder)
        raise DataError(f"{folder} holds no tokenizer ({TOKENIZER_FILE} is missing)")
    try:
        text = path.read_text(encoding="utf-8")
        if ByteTokenizer.wrote(text):
            return ByteTokenizer()
        options = folder / CONFIG_FILE
        special = parse_json(options.read_text(encoding="utf-8")) if options.is_file() else {}
        if not isinstance(special, dict):
            raise ValueError(f"{CONFIG_FILE} must be a mapping")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a tokenizer ({error})") from error
    return BpeTokenizer(text, special, str(path))
