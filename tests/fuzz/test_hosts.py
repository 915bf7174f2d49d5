"""Hostfiles and -H."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from hvdkit.errors import LaunchError
from hvdkit.launch.hosts import host_list, parse_hosts, read_hostfile
from tests.fuzz.harness import fuzz
from tests.fuzz.strategies import changed_bytes, hostile

FILES = [
    b"# Open MPI\nnode1 slots=4 max_slots=8\n\nnode2:3  # MPICH\nnode3\nnode3\n",
    b"10.0.0.1:2\n10.0.0.2:2\n",
    b"a.b-c_d slots=1\n",
]
LISTS = [b"node1:4,node2:2", b"node1, node2", b"a.b-c_d:1", b"localhost:2"]

_words = st.one_of(
    hostile.map(lambda value: str(value)[:9000].encode(errors="surrogatepass")),
    st.sampled_from([b"slots=", b":", b",", b"slots=0"]),
)


def _with_words(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    put = st.tuples(st.sampled_from(valid), _words, st.integers(0, 60)).map(
        lambda drawn: drawn[0][: drawn[2]] + drawn[1] + drawn[0][drawn[2] :]
    )
    return st.one_of(put, changed_bytes(put), changed_bytes(st.sampled_from(valid)), st.binary(max_size=100))


def _check(hosts: object) -> None:
    text = host_list(hosts)  # type: ignore[arg-type]
    assert parse_hosts(text) == hosts
    assert not text.startswith("-") and text.isascii() and "\n" not in text
    for host in hosts:  # type: ignore[attr-defined]
        host.name.encode("idna")


@pytest.mark.timeout(0)
def test_hostfiles(tmp_path: Path) -> None:
    path = tmp_path / "hosts"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _check(read_hostfile(path))

    fuzz("hostfiles", _with_words(FILES), read, LaunchError)


@pytest.mark.timeout(0)
def test_lists_of_hosts() -> None:
    fuzz("-H", _with_words(LISTS), lambda data: _check(parse_hosts(data.decode(errors="surrogateescape"))), LaunchError)


@pytest.mark.parametrize("text", ["node1:" + "9" * 5000, "a..b:1", "a." * 200 + "a", "a" * 64, "nöde:2", "node:٣"])
def test_hosts_that_once_broke_out(text: str) -> None:
    with pytest.raises(LaunchError, match="is not of the form host or host:slots"):
        parse_hosts(text)
