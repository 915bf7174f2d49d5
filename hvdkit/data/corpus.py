"""The corpus of a run as its ranks see it, and the configuration that says where its text comes from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hvdkit.data.batches import CausalSamples, MaskedSamples, Samples
from hvdkit.data.documents import Dropped
from hvdkit.data.token_files import TokenInfo
from hvdkit.data.tokenizer import Tokenizer
from hvdkit.errors import ConfigError, DataError


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # no name that a file system takes
        return False


@dataclass(frozen=True)
class CorpusConfig:
    """Where the text comes from and how it becomes tokens."""

    data: tuple[str, ...] = ()
    """Files, folders, globs or `package.module:function`; none for Python's own standard library sources."""
    text_field: str = "text"
    """The field of JSON Lines records (.jsonl, .ndjson) that holds the text."""
    skip_bad: bool = False
    """Leave out and count lines that are not UTF-8, not JSON or without text, rather than end the run."""
    tokens: str = "bytes"
    """`bytes`, `bpe` (trained on the training part), or a folder that holds a tokenizer.json."""
    vocab_size: int = 8192
    """Size of a trained BPE vocabulary; bytes and loaded tokenizers have their own."""
    validation_share: float = 0.05
    """Share of the text that is held out for validation."""
    cache_dir: str | None = None
    """Where token ids are kept; default ~/.cache/hvdkit (or $XDG_CACHE_HOME/hvdkit)."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 0.5:
            raise ConfigError(f"validation_share={self.validation_share} must lie between 0 and 0.5")
        if not self.text_field:
            raise ConfigError("text_field must name a field, for instance 'text'")
        if self.tokens not in ("bytes", "bpe") and not _is_folder(self.tokens):
            raise ConfigError(f"tokens={self.tokens!r} is neither 'bytes' nor 'bpe' nor a folder with a tokenizer.json")
        if self.tokens == "bpe" and self.vocab_size < 260:
            raise ConfigError(
                f"vocab_size={self.vocab_size}: a byte-level BPE needs at least 260 (256 bytes, 3 special)"
            )


@dataclass(frozen=True)
class Corpus:
    """Token ids of both parts, memory-mapped, and the tokenizer that made them."""

    train: npt.NDArray[Any]
    """(n,) uint16 or uint32."""
    validation: npt.NDArray[Any]
    """(m,) of the same dtype; never overlaps `train`."""
    tokenizer: Tokenizer
    info: TokenInfo
    dropped: Dropped
    """What the reader left out this time; the cache may come from another file with the same good lines."""

    def samples(self, part: str, objective: str, context: int, seed: int = 0) -> Samples:
        """Samples of `context` tokens of `part` ("train" or "validation") for `objective` ("causal" or "masked").

        Raises DataError if the part does not fill one sequence (validation: two tokens), ConfigError for a masked
        model with a tokenizer that has no mask.
        """
        if part not in ("train", "validation"):
            raise ValueError(f"part={part!r} must be 'train' or 'validation'")
        ids = self.train if part == "train" else self.validation
        self.check_context(context)
        pad_id = self.tokenizer.pad_id
        if objective == "causal":
            return CausalSamples(ids, context, pad_id)
        if objective != "masked":
            raise ValueError(f"objective={objective!r} must be 'causal' or 'masked'")
        if self.tokenizer.mask_id is None:
            raise ConfigError(
                f"the tokenizer ({self.tokenizer.kind}) has no mask token, which a masked model needs; "
                "train with --tokens bytes or bpe"
            )
        return MaskedSamples(
            ids,
            context,
            pad_id,
            mask_id=self.tokenizer.mask_id,
            vocab_size=self.tokenizer.vocab_size,
            seed=seed,
            kept_ids=(self.tokenizer.eot_id,),
        )

    def check_context(self, context: int) -> None:
        """Raise DataError unless the training part fills a sequence of `context` tokens and there is validation."""
        if len(self.train) <= context:
            raise DataError(
                f"the corpus is shorter than one sequence: {len(self.train):,} tokens for training, a sequence takes "
                f"{context + 1:,}; give more text with --data or a smaller context"
            )
        if len(self.validation) < 2:
            raise DataError(
                f"the corpus is too small to hold out text for validation ({self.info.train_bytes:,} bytes)"
            )

    def nats_per_byte(self, nats_per_token: float) -> float:
        """A causal validation loss per token as one per byte of text, which compares across tokenizers."""
        return nats_per_token * self.info.validation_tokens / max(1, self.info.validation_bytes)

    def describe(self) -> list[str]:
        """Lines for a person: the sizes, and what was left out."""
        info = self.info
        held = "the text's tail" if info.validation_is_tail else "documents chosen by name"
        lines = [
            f"{info.train_tokens:,} tokens for training, {info.validation_tokens:,} held out ({held}); "
            f"{info.documents:,} documents, tokens: {self.tokenizer.kind}"
        ]
        if self.dropped.bad:
            lines.append(f"left out {self.dropped.bad:,} bad lines (--skip-bad), the first: {self.dropped.first_bad}")
        if self.dropped.binary:
            lines.append(f"passed over {self.dropped.binary:,} files that are not text")
        return lines
