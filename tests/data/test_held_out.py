"""The held-out split loses nothing, has nothing on both sides, and takes the share asked for."""

from collections import defaultdict

import pytest

from hvdkit.data.documents import Piece
from hvdkit.data.held_out import Part, split, survey
from hvdkit.data.progress import Progress
from hvdkit.errors import DataError

QUIET = Progress("", None, lambda _: None)


def cut(pieces: list[Piece], share: float = 0.05) -> tuple[int, list[Part]]:
    """The bytes of the tail (0: split by name) and the parts."""
    found = survey(pieces, share, QUIET)
    assert found.n_bytes == sum(len(piece.text.encode()) for piece in pieces)
    assert found.n_documents == sum(piece.ends for piece in pieces)
    return found.tail_bytes, list(split(pieces, found))


def text_of(parts: list[Part], held_out: bool) -> str:
    return "".join(part.text for part in parts if part.held_out == held_out)


def test_many_documents_are_held_out_whole_and_by_name() -> None:
    pieces = [Piece(f"file{number}.py", f"<{number}>" + "x" * (number % 50), True) for number in range(2000)]
    tail, parts = cut(pieces)
    assert tail == 0
    assert [part.text for part in parts] == [piece.text for piece in pieces]
    held = {part.text for part in parts if part.held_out}
    assert 0.03 < len(held) / len(pieces) < 0.07
    # Other documents come and go: the rest stays on its side, whatever the order.
    fewer, fewer_parts = cut(pieces[::-2])
    assert fewer == 0
    assert {part.text for part in fewer_parts if part.held_out} == held & {piece.text for piece in pieces[::-2]}


def test_pieces_of_one_document_stay_on_one_side() -> None:
    pieces = [Piece(f"{number // 3}", f"{number} ", number % 3 == 2) for number in range(3000)]
    tail, parts = cut(pieces)
    assert tail == 0
    sides = defaultdict(set)
    for piece, part in zip(pieces, parts, strict=True):
        sides[piece.name].add(part.held_out)
        assert (part.text, part.ends) == (piece.text, piece.ends)
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("size", [40, 100, 1000])
def test_one_file_gives_its_tail(size: int, share: float) -> None:
    text = ("0123456789" * 100)[:size]
    tail, parts = cut([Piece("book.txt", text, True)], share)
    assert tail == max(1, round(size * share))
    assert [(part.held_out, part.ends) for part in parts] == [(False, True), (True, True)]
    assert text_of(parts, False) == text[:-tail]
    assert text_of(parts, True) == text[-tail:]


@pytest.mark.parametrize("n_pieces", [1, 2, 7])
def test_cut_inside_a_character_loses_nothing(n_pieces: int) -> None:
    """Every place inside 4-byte characters at which the cut can fall, with any number of bytes before them."""
    for before in range(8):
        text = "x" * before + "\U0001f600" * 50
        size = -(-len(text) // n_pieces)
        texts = [text[begin : begin + size] for begin in range(0, len(text), size)]
        pieces = [Piece("book.txt", part, number == len(texts) - 1) for number, part in enumerate(texts)]
        tail, parts = cut(pieces)
        train, held = text_of(parts, False), text_of(parts, True)
        assert train + held == text
        assert tail <= len(held.encode()) < tail + 4
        assert [part.held_out for part in parts] == sorted(part.held_out for part in parts)


def test_each_side_of_a_tail_cut_ends_its_last_document() -> None:
    # 100 bytes in pieces of 5: the cut falls between two pieces of one document.
    pieces = [Piece("book.txt", "12345", number == 19) for number in range(20)]
    _, parts = cut(pieces)
    for held_out in (False, True):
        side = [part.ends for part in parts if part.held_out == held_out]
        assert side == [False] * (len(side) - 1) + [True]


def test_few_documents_of_unlucky_size_fall_back_to_the_tail() -> None:
    # Whichever of two is held out, it is half of the text or more, or the other is.
    pieces = [Piece(name, "y" * 1000, True) for name in ("a", "b")]
    tail, parts = cut(pieces)
    assert tail == 100
    assert text_of(parts, True) == "y" * 100


def test_text_that_changes_between_survey_and_split_is_an_error() -> None:
    pieces = [Piece("a", "one " * 50, True)]
    found = survey(pieces, 0.05, QUIET)
    for other in (pieces * 2, [Piece("a", "two " * 50, True)], [Piece("b", "one " * 50, True)], []):
        with pytest.raises(DataError, match="the text changed while it was read"):
            list(split(other, found))
