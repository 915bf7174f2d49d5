"""The edits fit Horovod's release, and are refused whole where they do not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hvdkit.errors import BuildError
from hvdkit.horovod_build.edits import EDITS, Edit, apply_edits
from hvdkit.horovod_build.source import unpack

pytestmark = pytest.mark.launch  # nothing here depends on the number of ranks

FILES = sorted({edit.file for edit in EDITS})


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole release."""
    return unpack(archive, tmp_path_factory.mktemp("release"))


@pytest.fixture
def source(unpacked: Path, tmp_path: Path) -> Path:
    """The files that are edited, as released."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(unpacked / name, tmp_path / name)
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in FILES}


def test_all_edits_fit_the_release(source: Path) -> None:
    before = {name: text.decode() for name, text in contents(source).items()}
    apply_edits(source)
    expected = dict(before)
    for edit in EDITS:
        assert before[edit.file].count(edit.anchor) == edit.count, edit
        expected[edit.file] = expected[edit.file].replace(edit.anchor, edit.replacement)
    assert contents(source) == {name: text.encode() for name, text in expected.items()}


def test_what_was_unfit_is_gone(source: Path) -> None:
    apply_edits(source)
    text = "".join(value.decode() for value in contents(source).values())
    assert "distutils" not in text
    assert "CMAKE_CXX_STANDARD 14" not in text
    assert "VERSION 2.8.12" not in text
    compile((source / "horovod/runner/js_run.py").read_text(), "js_run.py", "exec")


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit.file}: {edit.anchor[:30].strip()}")
def test_a_missing_anchor_stops_everything(source: Path, edit: Edit) -> None:
    path = source / edit.file
    path.write_text(path.read_text().replace(edit.anchor, "# not what was released"))
    before = contents(source)
    with pytest.raises(BuildError, match="found 0 times instead of 1") as caught:
        apply_edits(source)
    assert edit.file in str(caught.value) and edit.why in str(caught.value)
    assert contents(source) == before, "an edit was written although another did not fit"


def test_an_anchor_that_occurs_too_often_is_refused(source: Path) -> None:
    edit = EDITS[0]
    path = source / edit.file
    path.write_text(path.read_text() + edit.anchor)
    with pytest.raises(BuildError, match="found 2 times instead of 1"):
        apply_edits(source)
    apply_edits(source, (replace(edit, count=2),))
    assert path.read_text().count(edit.replacement) == 2


def test_a_missing_file_is_refused(source: Path) -> None:
    before = contents(source)
    with pytest.raises(BuildError, match=r"no/such\.txt is missing from Horovod's source"):
        apply_edits(source, (*EDITS, replace(EDITS[0], file="no/such.txt")))
    assert contents(source) == before


def test_edits_of_an_emptied_file_are_refused(source: Path) -> None:
    (source / EDITS[0].file).write_text("")
    with pytest.raises(BuildError, match="found 0 times"):
        apply_edits(source)
