"""Who a running job listens to, and what a stranger who connects can do. All of it on this machine's loopback."""

import ipaddress
import socket
import struct
import time
import urllib.request
from pathlib import Path

import pytest

from tests.jobs import LAUNCHERS
from tests.security.watched import RIGHT, Job, results, running

pytestmark = pytest.mark.launch

GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"PUT /stranger/key HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n",
    b"\xff" * 4096,
    bytes(4096),
    struct.pack("<Q", 2**63) + b"x" * 100,
    struct.pack(">I", 2**31 - 1) + b"x" * 100,
    bytes(32) + struct.pack("i", 2**31 - 1),  # as Horovod's services frame their messages: digest, length, message
    bytes(32) + struct.pack("i", -1) + b"x" * 100,
]


def connect(address: str, port: int) -> socket.socket:
    """On loopback, whatever the address that is listened at."""
    is_6 = ":" in address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    assert ipaddress.ip_address(host).is_loopback
    found = socket.socket(socket.AF_INET6 if is_6 else socket.AF_INET, socket.SOCK_STREAM)
    found.settimeout(2)
    found.connect((host, port))
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_on_one_machine_listen_to_nobody(launcher: str, tmp_path: Path) -> None:
    """The launchers do, at all addresses, which no setting of theirs changes: SECURITY.md says so."""
    with running(launcher, tmp_path) as job:
        ranks = job.ranks()
        assert len(ranks) == 2
        assert [place for place in job.listening(ranks) if not ipaddress.ip_address(place[0]).is_loopback] == []
        of_launcher = [place for place in job.listening() if not ipaddress.ip_address(place[0]).is_loopback]
        # mpirun: one of IPv4 and one of IPv6; horovodrun over Gloo: its rendezvous. More would be news.
        assert len(of_launcher) <= (1 if launcher == "horovodrun-gloo" else 2), of_launcher
        status, printed = job.end()
    assert status == 0 and results(printed) == RIGHT[launcher], printed


def test_a_user_may_have_tcp_all_the_same(tmp_path: Path) -> None:
    with running("mpirun", tmp_path, {"OMPI_MCA_btl": "^ofi"}) as job:
        assert job.listening(job.ranks())
        status, printed = job.end()
    assert status == 0 and results(printed) == RIGHT["mpirun"], printed


def _bother(job: Job) -> int:
    """Connect to every port in every way; returns how many connections were accepted."""
    accepted = 0
    half_open = []
    for address, port in job.listening():
        for message in [b"", *GARBAGE]:
            try:
                stranger = connect(address, port)
                accepted += 1
                stranger.sendall(message)
                if message:
                    stranger.close()
                else:
                    half_open.append(stranger)  # says nothing, and stays
            except OSError:
                continue  # closed in our face
    time.sleep(1)
    for stranger in half_open:
        stranger.close()
    return accepted


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_strangers_do_not_change_the_result(launcher: str, tmp_path: Path) -> None:
    with running(launcher, tmp_path) as job:
        assert _bother(job) > 0
        time.sleep(0.5)
        status, printed = job.end()
    assert status == 0, printed
    assert results(printed) == RIGHT[launcher], printed


def test_the_rendezvous_of_gloo_is_open_to_all(tmp_path: Path) -> None:
    """A limitation of Horovod's that SECURITY.md names: whoever reaches the port may read and write its keys."""
    with running("horovodrun-gloo", tmp_path) as job:
        ((_, port),) = job.listening()
        url = f"http://127.0.0.1:{port}/stranger/key"
        request = urllib.request.Request(url, data=b"written", method="PUT")
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.read() == b"written"
        status, printed = job.end()
    assert status == 0 and results(printed) == RIGHT["horovodrun-gloo"], printed


def test_horovods_services_unpickle_nothing_with_a_wrong_digest(tmp_path: Path) -> None:
    """horovodrun's services between several hosts; they listen at all addresses, too."""
    import cloudpickle
    from horovod.runner.common.util import secret
    from horovod.runner.common.util.network import BasicService, PingRequest, Wire

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "unpickled",)

    key = secret.make_secret_key()
    service = BasicService("test service", key, None)
    try:
        for digest in (bytes(32), secret.compute_digest(b"another key", cloudpickle.dumps(Trap()))):
            message = cloudpickle.dumps(Trap())
            with connect("0.0.0.0", service.get_port()) as stranger:
                stranger.sendall(digest + struct.pack("i", len(message)) + message)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        assert not (tmp_path / "unpickled").exists()
        with connect("0.0.0.0", service.get_port()) as friend:
            with friend.makefile("wb") as out:
                Wire(key).write(PingRequest(), out)
            with friend.makefile("rb") as answer:
                assert Wire(key).read(answer).service_name == "test service"
    finally:
        service.shutdown()
