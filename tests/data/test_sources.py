"""Which files and functions an argument of --data means, in which order, under which labels."""

import os
from pathlib import Path

import pytest

from hvdkit.data.sources import TextFile, TextFunction, find_sources, is_text, standard_library
from hvdkit.errors import DataError


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def labels(*arguments: Path | str) -> list[str]:
    found = find_sources([str(argument) for argument in arguments])
    return [source.label for source in found if isinstance(source, TextFile)]


def test_folder_gives_its_files_by_name_and_passes_over_hidden_ones(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a/z.txt", "a/b/c.py", ".hidden", ".git/config", "__pycache__/x", "node_modules/y.js", "c")
    assert labels(tmp_path) == ["b.txt", "c", "a/z.txt", "a/b/c.py"]


def test_hidden_file_and_folder_count_where_they_are_named(tmp_path: Path) -> None:
    write(tmp_path, ".notes/one.txt", ".two")
    assert labels(tmp_path / ".notes", tmp_path / ".two") == ["one.txt", ".two"]


def test_order_is_that_of_the_arguments(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt", "c.txt")
    assert labels(tmp_path / "c.txt", tmp_path / "a.txt", tmp_path / "b.txt") == ["c.txt", "a.txt", "b.txt"]


def test_file_reached_twice_comes_once(tmp_path: Path) -> None:
    """A second copy of a text could stand on the other side of the held-out split."""
    write(tmp_path, "books/a.txt", "books/b.txt")
    (tmp_path / "books" / "link.txt").symlink_to(tmp_path / "books" / "a.txt")
    found = find_sources([str(tmp_path / "books/b.txt"), str(tmp_path / "books"), str(tmp_path / "books/*.txt")])
    assert [source.path.name for source in found if isinstance(source, TextFile)] == ["b.txt", "a.txt"]


def test_pattern_is_expanded_as_a_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "d/a.txt", "d/b.md", "d/.hidden.txt", "d/inner/c.txt")
    assert labels(tmp_path / "d/*.txt") == ["a.txt"]
    assert labels(tmp_path / "d/*") == ["a.txt", "b.md", "inner/c.txt"]
    assert labels(tmp_path / "d/**/*.txt") == ["a.txt", "inner/c.txt"]
    assert sorted(labels(tmp_path / "d/**")) == ["a.txt", "b.md", "inner/c.txt"]
    monkeypatch.chdir(tmp_path)
    assert labels("*/*.txt") == ["d/a.txt"]


def test_labels_stay_when_the_folder_moves_or_other_files_come(tmp_path: Path) -> None:
    write(tmp_path / "here", "x/a.txt")
    before = labels(tmp_path / "here/*/*.txt")
    write(tmp_path / "here", "y/b.txt")
    (tmp_path / "here").rename(tmp_path / "there")
    assert before == ["x/a.txt"]
    assert labels(tmp_path / "there/*/*.txt") == ["x/a.txt", "y/b.txt"]
    assert labels(tmp_path / "there") == ["x/a.txt", "y/b.txt"]


def test_function_is_told_from_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_sources(["package.module:function"]) == [TextFunction("package.module:function")]
    write(tmp_path, "notes:monday")
    assert labels("notes:monday") == ["notes:monday"]


def test_default_is_the_standard_library_without_its_tests() -> None:
    found = find_sources([])
    assert found == standard_library()
    names = {source.label for source in standard_library()}
    assert {"argparse.py", "json/decoder.py", "unittest/case.py"} <= names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(Path(name).parts)]
    assert all(name.endswith(".py") for name in names)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "hidden/.only")
    os.mkfifo(tmp_path / "pipe")
    for argument, reason in {
        "missing.txt": "no such file or folder",
        "empty": "the folder holds no files",
        "hidden": "hidden ones do not count",
        "*.csv": "matches no file",
        "pipe": "not a regular file",
    }.items():
        with pytest.raises(DataError, match=reason) as caught:
            find_sources([str(tmp_path / argument)])
        assert argument in str(caught.value)


def test_text_is_told_from_binary_by_a_zero_byte(tmp_path: Path) -> None:
    for name, content, expected in (
        ("utf8", "ä".encode() * 9, True),
        ("empty", b"", True),
        ("latin1", b"\xe4\xf6", True),
        ("utf16", "text".encode("utf-16"), False),
        ("program", b"\x7fELF\0", False),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_text(tmp_path / name) is expected, name
