"""The cache of token ids: one folder for each (text, tokenizer), with two flat files that ranks map into memory.

    train.bin, validation.bin    token ids, little-endian uint16 or uint32
    corpus.json                  their counts, and the bytes of text behind them

A folder is complete or absent (see `durable`), so two jobs that start at once do no harm: both write, one name wins.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hvdkit.data.held_out import Part, Survey
from hvdkit.data.progress import Progress
from hvdkit.data.tokenizer import Tokenizer
from hvdkit.files.durable import complete_folder, remove_folder
from hvdkit.untrusted import parse_json

INFO_FILE = "corpus.json"
_DTYPES = ("<u2", "<u4")
_COUNTS = ("documents", "train_tokens", "train_bytes", "validation_tokens", "validation_bytes")
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class TokenInfo:
    """What corpus.json holds: the sizes of the two parts."""

    dtype: str
    documents: int
    train_tokens: int
    train_bytes: int
    validation_tokens: int
    validation_bytes: int
    validation_is_tail: bool


class _Writer:
    """Appends token ids to one file and counts them."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], eot_id: int) -> None:
        self.file = file
        self.dtype = dtype
        self.end = np.array([eot_id], dtype=dtype).tobytes()
        self.tokens = 0
        self.bytes = 0

    def write(self, ids: npt.NDArray[np.integer[Any]], n_bytes: int, ends: bool) -> None:
        self.file.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)
        self.bytes += n_bytes
        if ends:
            self.file.write(self.end)
            self.tokens += 1


def write_tokens(
    folder: Path, parts: Iterable[Part], found: Survey, tokenizer: Tokenizer, progress: Progress
) -> TokenInfo:
    """Tokenise `parts`, the split of `found`, into the files of `folder` (an empty one); returns their sizes."""
    dtype = np.dtype(_DTYPES[tokenizer.vocab_size > 1 << 16])
    with (folder / "train.bin").open("wb") as train, (folder / "validation.bin").open("wb") as validation:
        writers = (_Writer(train, dtype, tokenizer.eot_id), _Writer(validation, dtype, tokenizer.eot_id))
        for block in _blocks(parts):
            for part, ids in zip(block, tokenizer.encode_many([part.text for part in block]), strict=True):
                n_bytes = len(part.text.encode())
                writers[part.held_out].write(ids, n_bytes, part.ends)
                progress.advance(n_bytes)
    return TokenInfo(
        dtype=dtype.str,
        documents=found.n_documents,
        train_tokens=writers[0].tokens,
        train_bytes=writers[0].bytes,
        validation_tokens=writers[1].tokens,
        validation_bytes=writers[1].bytes,
        validation_is_tail=found.tail_bytes > 0,
    )


def read_info(folder: Path) -> TokenInfo | None:
    """What `folder` holds; None where there is no usable cache (absent, or of another version of hvdkit)."""
    try:
        info = TokenInfo(**parse_json((folder / INFO_FILE).read_text(encoding="utf-8")))
        if info.dtype not in _DTYPES or not all(type(getattr(info, name)) is int for name in _COUNTS):
            return None
        width = np.dtype(info.dtype).itemsize
        for name, count in (("train", info.train_tokens), ("validation", info.validation_tokens)):
            if (folder / f"{name}.bin").stat().st_size != count * width:
                return None
    except (OSError, ValueError, TypeError):
        return None
    return info


def write_info(folder: Path, info: TokenInfo) -> None:
    """Write corpus.json into `folder`."""
    (folder / INFO_FILE).write_text(json.dumps(asdict(info), indent=1), encoding="utf-8")


def map_tokens(path: Path, dtype: str, count: int) -> npt.NDArray[Any]:
    """The (count,) ids of one file, memory-mapped read-only."""
    if count == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def store(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make the cache folder `folder`, of which there is no usable one, by `fill(new_folder)`; another job that made
    it meanwhile is no fault."""
    # What is there cannot be used (cut short, another version's). It goes first and not at the end, when another
    # job may have put a good one there and be reading it.
    with suppress(FileNotFoundError):
        remove_folder(folder)
    try:
        with complete_folder(folder) as new:
            fill(new)
    except FileExistsError:
        if read_info(folder) is None:
            raise


def _blocks(parts: Iterable[Part]) -> Iterator[list[Part]]:
    block: list[Part] = []
    for part in parts:
        block.append(part)
        if len(block) == _TEXTS_AT_ONCE or sum(len(p.text) for p in block) > 1 << 24:
            yield block
            block = []
    if block:
        yield block
