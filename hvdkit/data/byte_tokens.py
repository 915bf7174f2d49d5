"""The tokenizer without a vocabulary: a token is a byte of the text's UTF-8, and three more are special.

It needs no library. On disk it is a byte-level BPE with no merges, so that Hugging Face's tools read it as well.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvdkit.untrusted import parse_json

SPECIAL_TOKENS = ("<|endoftext|>", "<|mask|>", "<|pad|>")


class ByteTokenizer:
    """Ids 0..255 are bytes; 256 ends a text, 257 masks, 258 pads."""

    vocab_size = 259
    eot_id = 256
    mask_id: int | None = 257
    pad_id = 258
    kind = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_many(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.integer[Any]]]:
        return (np.frombuffer(text.encode(), dtype=np.uint8) for text in texts)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(number for number in ids if number < 256).decode(errors="replace")

    def to_json(self) -> str:
        return _description()

    def to_config(self) -> dict[str, Any]:
        eot, mask, pad = SPECIAL_TOKENS
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "eos_token": eot,
            "mask_token": mask,
            "pad_token": pad,
        }

    @staticmethod
    def wrote(text: str) -> bool:
        """Whether `text`, the contents of a tokenizer.json, describes this tokenizer."""
        return bool(parse_json(text) == json.loads(_description()))


@functools.cache
def _description() -> str:
    # The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the other bytes for U+0100 and up.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte if byte in printable else 0x100 + others.index(byte)): byte for byte in range(256)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + i, "content": name, **flags} for i, name in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": alphabet, "merges": []},
    }
    return json.dumps(description, ensure_ascii=False, indent=1)
