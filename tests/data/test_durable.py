"""Folders are complete or absent, whoever writes them at the same time."""

import threading
from pathlib import Path

import pytest

from hvdkit.data.token_files import TokenInfo, read_info, store, write_info
from hvdkit.files.durable import complete_folder, remove_folder


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folder_appears_at_the_end_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "folder"
    with complete_folder(target) as beside:
        (beside / "inner").mkdir()
        (beside / "inner" / "a").write_text("1")
        (beside / "b").write_text("2")
        assert not target.exists()
    assert contents(target) == {"inner/a": "1", "b": "2"}
    assert list(target.parent.iterdir()) == [target]


def test_error_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), complete_folder(tmp_path / "x") as beside:
        (beside / "half").write_text("1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_stays(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("old")
    with pytest.raises(FileExistsError), complete_folder(tmp_path / "x") as beside:
        (beside / "a").write_text("new")
    assert contents(tmp_path) == {"x/a": "old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_removed_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "a").write_text("1")
    remove_folder(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["nothing", "damaged"])
def test_jobs_that_make_the_same_cache_at_once_do_no_harm(tmp_path: Path, there: str) -> None:
    """All are inside `fill` at the same moment; one name wins, each finds a whole cache."""
    folder = tmp_path / "cache"
    if there == "damaged":
        folder.mkdir()
        (folder / "corpus.json").write_text("{")
    info = TokenInfo("<u2", 1, 4, 4, 2, 2, True)
    together = threading.Barrier(4)
    faults: list[BaseException] = []

    def fill(new: Path) -> None:
        (new / "train.bin").write_bytes(b"12345678")
        (new / "validation.bin").write_bytes(b"1234")
        write_info(new, info)
        together.wait(timeout=30)

    def job() -> None:
        try:
            store(folder, fill)
            assert read_info(folder) == info
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert list(tmp_path.iterdir()) == [folder]


def test_cache_that_cannot_be_used_is_told_from_one_that_can(tmp_path: Path) -> None:
    info = TokenInfo("<u2", 1, 4, 4, 2, 2, True)
    (tmp_path / "train.bin").write_bytes(b"12345678")
    (tmp_path / "validation.bin").write_bytes(b"1234")
    assert read_info(tmp_path) is None
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    for name, good, bad in (
        ("train.bin", b"12345678", b"1234567"),
        ("validation.bin", b"1234", b""),
        ("corpus.json", (tmp_path / "corpus.json").read_bytes(), b'{"dtype": "<u2"}'),
        ("corpus.json", (tmp_path / "corpus.json").read_bytes(), b"[]"),
        ("corpus.json", (tmp_path / "corpus.json").read_bytes(), b"\xff"),
    ):
        (tmp_path / name).write_bytes(bad)
        assert read_info(tmp_path) is None, (name, bad)
        (tmp_path / name).write_bytes(good)
        assert read_info(tmp_path) == info
