"""Hosts as users write them."""

import socket
from pathlib import Path

import pytest

from hvdkit.errors import LaunchError
from hvdkit.launch.hosts import Host, check_reachable, host_list, is_local, parse_hosts, read_hostfile


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1:4,node2:2", [Host("node1", 4), Host("node2", 2)]),
        ("node1, node2", [Host("node1", 1), Host("node2", 1)]),
        ("a.b-c_d:1", [Host("a.b-c_d", 1)]),
        ("10.0.0.1:2,10.0.0.1:3", [Host("10.0.0.1", 5)]),
    ],
)
def test_parse(text: str, hosts: list[Host]) -> None:
    assert list(parse_hosts(text)) == hosts
    assert parse_hosts(host_list(hosts)) == tuple(hosts)


@pytest.mark.parametrize("text", ["", "node1:", "node1:0", "node1:x", "node1:2:3", "no de", "-oProxyCommand=x", "a,,b"])
def test_wrong_names_are_named(text: str) -> None:
    with pytest.raises(LaunchError, match="is not of the form host or host:slots"):
        parse_hosts(text)


def test_hostfiles_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# Open MPI\nnode1 slots=4 max_slots=8\n\nnode2:3  # MPICH\nnode3\nnode3\n")
    assert read_hostfile(file) == (Host("node1", 4), Host("node2", 3), Host("node3", 2))


@pytest.mark.parametrize(
    ("content", "said"), [("node1 slots=x\n", "line 1: 'node1:x'"), ("# nobody\n", "names no host")]
)
def test_wrong_hostfiles(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(content)
    with pytest.raises(LaunchError, match=said):
        read_hostfile(file)
    with pytest.raises(LaunchError, match="cannot be read"):
        read_hostfile(tmp_path / "missing")


def test_local_and_unreachable_hosts() -> None:
    assert all(is_local(name) for name in ("localhost", "127.0.0.1", socket.gethostname()))
    assert not is_local("no-such-host.invalid")
    check_reachable([Host("localhost", 2)], "/bin/sh")
    with pytest.raises(LaunchError, match=r"ssh does not reach no-such-host\.invalid without a password"):
        check_reachable([Host("localhost", 2), Host("no-such-host.invalid", 2)], "/bin/sh")
