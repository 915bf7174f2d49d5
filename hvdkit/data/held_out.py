"""Which part of the text is held out for validation.

A document is held out if the hash of its name (the file's path inside its folder) says so, about 1 in 20: this does
not change when other files come or go. Where that leaves too little or takes too much, as with one file or a few,
the tail of the text is held out instead, the last 1/20 of its bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hvdkit.data.documents import Piece
from hvdkit.data.progress import Progress
from hvdkit.errors import DataError

_LEAST = 0.2
_MOST = 3.0
"""Held-out bytes within these multiples of the share asked for are accepted."""


@dataclass(frozen=True)
class Part:
    """Some text of a document, on one side of the split; `ends` with the last of that document on that side."""

    text: str
    held_out: bool
    ends: bool


@dataclass(frozen=True)
class Survey:
    """What one pass over the text found, and the split that follows from it."""

    digest: str
    n_bytes: int
    n_documents: int
    validation_share: float
    tail_bytes: int
    """Bytes at the end that are held out; 0 where documents are held out by name."""


def survey(pieces: Iterable[Piece], validation_share: float, progress: Progress) -> Survey:
    """Hash and measure `pieces`, and decide how to hold out `validation_share` of them."""
    digest = _Digest()
    n_bytes = n_documents = held_out = 0
    for piece in pieces:
        size = digest.add(piece)
        n_bytes += size
        n_documents += piece.ends
        held_out += size if _chosen(piece.name, validation_share) else 0
        progress.advance(size)
    wanted = validation_share * n_bytes
    by_name = _LEAST * wanted <= held_out <= min(_MOST * wanted, n_bytes / 2) and held_out > 0
    return Survey(digest.hex(), n_bytes, n_documents, validation_share, 0 if by_name else max(1, round(wanted)))


def split(pieces: Iterable[Piece], found: Survey) -> Iterator[Part]:
    """The same `pieces` cut as `found` says. Raises DataError at the end if they are not those of the survey."""
    digest = _Digest()
    left = found.n_bytes - found.tail_bytes
    for piece in pieces:
        size = digest.add(piece)
        if not found.tail_bytes:
            yield Part(piece.text, _chosen(piece.name, found.validation_share), piece.ends)
        elif size <= left or left <= 0:
            yield Part(piece.text, left <= 0, piece.ends or size == left)
        else:
            # "ignore" can only meet the character that the cut divides.
            head = piece.text.encode()[:left].decode(errors="ignore")
            yield Part(head, False, True)
            yield Part(piece.text[len(head) :], True, piece.ends)
        left -= size
    if digest.hex() != found.digest:
        raise DataError(
            "the text changed while it was read (or its function gives another text each time); start again"
        )


def _chosen(name: str, share: float) -> bool:
    number = int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest(), "little")
    return number < share * 2**64


class _Digest:
    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, piece: Piece) -> int:
        """Take `piece` in; returns the bytes of its text."""
        text = piece.text.encode()
        name = piece.name.encode(errors="replace")
        self._hash.update(b"%d %d %d\n" % (len(name), len(text), piece.ends) + name)
        self._hash.update(text)
        return len(text)

    def hex(self) -> str:
        return self._hash.hexdigest()
