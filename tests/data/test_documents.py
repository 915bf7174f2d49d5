"""Documents and pieces out of files and functions; what cannot be read is named, or dropped and counted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hvdkit.data.documents import Piece, Reader
from hvdkit.data.sources import find_sources
from hvdkit.errors import DataError


def reader(*paths: Path | str, **options: Any) -> Reader:
    return Reader(find_sources([str(path) for path in paths]), **options)


def documents(pieces: Reader) -> dict[str, str]:
    """Whole documents by name, put together from their pieces; each must end, and none may go on after its end."""
    found: dict[str, str] = {}
    ended: set[str] = set()
    for piece in pieces:
        assert piece.text and piece.name not in ended
        found[piece.name] = found.get(piece.name, "") + piece.text
        ended |= {piece.name} if piece.ends else set()
    assert ended == found.keys()
    return found


def test_text_stays_as_it_is(tmp_path: Path) -> None:
    contents = {
        "unix": "a\nb\n",
        "dos": "a\r\nb\r\n",
        "mac": "a\rb",
        "no_end": "one line",
        "odd": "\x0c \x85\u2028x\n\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "empty").write_bytes(b"")
    assert documents(reader(tmp_path)) == contents


def test_byte_order_mark_is_dropped_at_the_beginning_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\ufefftwo\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('\ufeff{"text": "three"}\n', encoding="utf-8")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf")
    assert documents(reader(tmp_path)) == {"a.txt": "one\n\ufefftwo\n", "b.jsonl:1": "three"}


@pytest.mark.parametrize("ending", ["\n", ""])
def test_large_file_comes_in_pieces_that_add_up(tmp_path: Path, ending: str) -> None:
    # 9 MB of lines whose characters take 1 to 4 bytes, so that a piece's end falls inside a line and a character.
    text = "\n".join(f"{number} ä \u20ac \U0001f600" * 30 for number in range(20_000)) + ending
    (tmp_path / "large.txt").write_text(text, encoding="utf-8")
    assert len(text.encode()) > 2 * 2**22
    pieces = list(reader(tmp_path / "large.txt"))
    assert [piece.ends for piece in pieces] == [False, False, True][-len(pieces) :]
    assert len(pieces) == 3
    assert "".join(piece.text for piece in pieces) == text


def test_json_lines_of_every_shape(tmp_path: Path) -> None:
    lines = [
        '{"text": "a\\nb", "id": 1}',
        "",
        '  {"text": "\u00e4 \\ud83d\\ude00"}  \r',
        '{"text": ""}',
        '{"text": "no end"}',
    ]
    expected = {"1": "a\nb", "3": "\u00e4 \U0001f600", "5": "no end"}
    for suffix in ("jsonl", "ndjson", "jsonlines", "JSONL"):
        (tmp_path / f"x.{suffix}").write_bytes("\n".join(lines).encode())
        found = documents(reader(tmp_path / f"x.{suffix}"))
        assert found == {f"x.{suffix}:{number}": text for number, text in expected.items()}


def test_json_lines_across_the_piece_boundary(tmp_path: Path) -> None:
    texts = [f"{number} " + "\u20ac" * 997 for number in range(2000)]
    path = tmp_path / "large.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    assert path.stat().st_size > 2**22
    found = documents(reader(path, text_field="body"))
    assert found == {f"large.jsonl:{number}": text for number, text in enumerate(texts, 1)}


BAD_LINES = {
    b'{"text": "a"': "not JSON",
    b"[1, 2]": "JSON array",
    b"null": "JSON null",
    b'{"title": "a"}': "no field 'text' .it has: title.",
    b'{"text": 5}': "JSON number",
    b'{"text": "\xff"}': "0xff is not UTF-8",
    rb'{"text": "\ud800"}': "half a surrogate pair",
    b"[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=[*BAD_LINES.values()])
def test_bad_record_is_named_with_file_and_line_or_dropped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "also"}\n' + line)
    with pytest.raises(DataError, match=BAD_LINES[line]) as caught:
        list(reader(path))
    assert f"{path}, line 3" in str(caught.value)
    lenient = reader(path, skip_bad=True)
    for _ in range(2):  # counts over one iteration
        assert list(documents(lenient).values()) == ["good", "also"]
        assert lenient.dropped.bad == 2
        assert lenient.dropped.first_bad.startswith(f"{path}, line 3")


def test_bad_utf8_in_text_is_named_with_file_line_and_byte_or_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("gut ä\n".encode() + b"bad \xe4 \n" + b"last\n")
    with pytest.raises(DataError) as caught:
        list(reader(path))
    assert f"{path}, line 2, byte 4 of the line: 0xe4 is not UTF-8" in str(caught.value)
    lenient = reader(path, skip_bad=True)
    assert documents(lenient) == {"x.txt": "gut ä\nlast\n"}
    assert lenient.dropped.bad == 1


def test_document_ends_though_all_of_its_last_piece_was_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    good, bad = b"good " * 2**20 + b"\n", (b"\xff" * 2**12 + b"\n") * 2**10
    path.write_bytes(good + bad)
    lenient = reader(path, skip_bad=True)
    assert documents(lenient) == {"x.txt": good.decode()}
    assert lenient.dropped.bad == 2**10
    path.write_bytes(bad + good)
    assert documents(lenient) == {"x.txt": good.decode()}


def test_binary_file_is_an_error_if_named_and_passed_over_if_found(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(DataError, match="not a text file"):
        list(reader(tmp_path / "a.bin"))
    for argument in (tmp_path, tmp_path / "*"):
        found = reader(argument)
        assert documents(found) == {"b.txt": "text"}
        assert found.dropped.binary == 1


FUNCTIONS = """
def texts():
    yield "one"
    yield ("named", "two")
    yield ""

def mixed():
    return ["good", 5, ("name", None), "\\ud800", "end"]

def fails():
    yield "one"
    raise KeyError("the source is gone")

def one_text():
    return "a long text"

value = 5
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of functions in the working folder; its name."""
    (tmp_path / "hvdkit_test_texts.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "hvdkit_test_texts", raising=False)
    return "hvdkit_test_texts"


def test_function_gives_texts_and_named_texts(functions: str) -> None:
    assert list(reader(f"{functions}:texts")) == [Piece("0", "one", True), Piece("named", "two", True)]


def test_bad_items_of_a_function_are_named_or_dropped(functions: str) -> None:
    with pytest.raises(DataError, match=r"mixed, item 1: neither a text nor a \(name, text\) pair, but int"):
        list(reader(f"{functions}:mixed"))
    lenient = reader(f"{functions}:mixed", skip_bad=True)
    assert documents(lenient) == {"0": "good", "4": "end"}
    assert lenient.dropped.bad == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hvdkit_test_texts:fails", "failed: KeyError: 'the source is gone'"),
        ("hvdkit_test_texts:one_text", "returned one text"),
        ("hvdkit_test_texts:missing", "has no function missing"),
        ("hvdkit_test_texts:value", "has no function value"),
        ("hvdkit_no_such_module:texts", "cannot be imported .ModuleNotFoundError"),
    ],
)
def test_function_that_cannot_be_used_is_named(functions: str, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        list(reader(name, skip_bad=True))
    assert name in str(caught.value)
