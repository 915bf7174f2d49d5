"""The source release is taken only if it is the one, from wherever it comes; each refusal says what to do."""

from pathlib import Path

import pytest

from hvdkit.errors import BuildError
from hvdkit.horovod_build.source import ARCHIVE, SHA256, fetch_source

pytestmark = pytest.mark.launch  # nothing here depends on the number of ranks

# An index that nobody answers: port 9 of this machine. pip's own configuration could name others.
NO_NETWORK = {
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_RETRIES": "0",
    "PIP_DEFAULT_TIMEOUT": "2",
    "no_proxy": "*",
}


@pytest.fixture
def forged(archive: Path, tmp_path: Path) -> Path:
    """The release with one bit changed."""
    content = bytearray(archive.read_bytes())
    content[-1] ^= 1
    folder = tmp_path / "forged"
    folder.mkdir()
    path = folder / ARCHIVE
    path.write_bytes(content)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)


def test_a_given_archive_is_used_as_it_is(archive: Path, tmp_path: Path, no_network: None) -> None:
    assert fetch_source(tmp_path, archive) == archive
    assert list(tmp_path.iterdir()) == []


def test_a_given_archive_with_another_hash_is_refused(forged: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"not Horovod 0.28.1 as released.*{SHA256}") as caught:
        fetch_source(tmp_path, forged)
    assert str(forged) in str(caught.value)
    assert forged.exists(), "the user's file is not ours to delete"


def test_a_given_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"--source .*absent.tar.gz: there is no such file; get it with `pip download"):
        fetch_source(tmp_path, tmp_path / "absent.tar.gz")


def test_without_a_network_the_remedy_is_named(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(BuildError, match=r"could not download Horovod 0.28.1 \(ERROR.*--source FILE"):
        fetch_source(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_in_the_cache_is_fetched_again(forged: Path, no_network: None) -> None:
    with pytest.raises(BuildError, match="could not download"):
        fetch_source(forged.parent)
    assert list(forged.parent.iterdir()) == []


def test_an_index_that_serves_another_file_is_refused(
    forged: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(forged.parent))
    cache = tmp_path / "sources"
    cache.mkdir()
    with pytest.raises(BuildError, match=r"served a file that is not Horovod 0.28.1 as released \(Got [0-9a-f]{64}"):
        fetch_source(cache)
    assert list(cache.iterdir()) == []
