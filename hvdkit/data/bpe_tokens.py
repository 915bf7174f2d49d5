"""Subword tokenizers through the `tokenizers` library: trained here (byte-level BPE) or read from a folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from hvdkit.data.byte_tokens import SPECIAL_TOKENS
from hvdkit.errors import ConfigError, DataError

_END_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>")
_PAD_NAMES = ("<|pad|>", "[PAD]", "<pad>")
_MASK_NAMES = ("<|mask|>", "[MASK]", "<mask>")
_TEXTS_AT_ONCE = 64


class BpeTokenizer:
    """A tokenizer of the `tokenizers` library (BPE, but WordPiece and Unigram work as well).

    `text` is a tokenizer.json, `special` a tokenizer_config.json (which names the special tokens), `origin` what
    error messages call it.
    """

    def __init__(self, text: str, special: Mapping[str, Any], origin: str) -> None:
        library = _library()
        self._made_of = (text, special, origin)
        try:
            self._tokenizer = library.Tokenizer.from_str(text)
        except Exception as error:
            raise DataError(f"{origin}: cannot be read as a tokenizer ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A corpus may well contain "<|endoftext|>" in a string: that is text, not the end of one.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        end = _special(vocabulary, special.get("eos_token") or special.get("sep_token"), _END_NAMES)
        if end is None:
            raise DataError(f"{origin}: no end-of-text token: neither an eos_token nor any of {', '.join(_END_NAMES)}")
        pad = _special(vocabulary, special.get("pad_token"), _PAD_NAMES)
        mask = _special(vocabulary, special.get("mask_token"), _MASK_NAMES)
        self.eot_id: int = vocabulary[end]
        self.pad_id: int = vocabulary[pad or end]
        self.mask_id: int | None = None if mask is None else vocabulary[mask]
        self._names = {"eos_token": end, "pad_token": pad, "mask_token": mask}

    def __reduce__(self) -> tuple[Any, ...]:
        return BpeTokenizer, self._made_of

    @property
    def kind(self) -> str:
        return f"{type(self._tokenizer.model).__name__} of {self.vocab_size}"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_many(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.integer[Any]]]:
        iterator = iter(texts)
        while block := list(islice(iterator, _TEXTS_AT_ONCE)):
            for encoding in self._tokenizer.encode_batch_fast(block, add_special_tokens=False):
                yield np.asarray(encoding.ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def to_json(self) -> str:
        text: str = self._tokenizer.to_str(pretty=True)
        return text

    def to_config(self) -> dict[str, Any]:
        _, special, _ = self._made_of
        if "tokenizer_class" in special:  # transformers' own: kept as it is, chat template and all
            return dict(special)
        names = {key: name for key, name in self._names.items() if name is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names, **special}


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A byte-level BPE of at most `vocab_size` tokens (fewer if `texts` are short), specials included."""
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise ConfigError(f"vocab_size={vocab_size} leaves no room for merges: use more than {smallest}, or bytes")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BpeTokenizer(tokenizer.to_str(pretty=True), {}, "the trained tokenizer")


def from_transformers(folder: Path) -> BpeTokenizer:
    """The tokenizer of a Hugging Face folder without tokenizer.json; transformers converts what is there."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise DataError(
            f"{folder} holds no tokenizer.json; transformers could make one from the older files there: "
            "`pip install transformers`"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        text = tokenizer.backend_tokenizer.to_str()
        special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    except Exception as error:
        raise DataError(f"{folder}: transformers cannot make a tokenizer of it ({error})") from error
    return BpeTokenizer(text, special, str(folder))


def library_version() -> str:
    """The version of the `tokenizers` library, since another one may train another BPE."""
    return str(_library().__version__)


def _special(vocabulary: Mapping[str, int], configured: Any, names: Sequence[str]) -> str | None:
    """The name of a special token: the configured one, else the first of `names`, that the vocabulary has."""
    # Hugging Face writes a special token as a string or as {"content": ..., more}.
    named = configured.get("content") if isinstance(configured, dict) else configured
    candidates = names if named is None else (str(named), *names)
    return next((name for name in candidates if name in vocabulary), None)


def _library() -> ModuleType:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise ConfigError("BPE tokens need the tokenizers library: `pip install tokenizers`, or use bytes") from None
    module: ModuleType = tokenizers
    return module
