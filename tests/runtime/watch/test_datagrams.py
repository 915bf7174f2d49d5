"""Notes of the ranks of a Gloo launch: what strangers send to their sockets is dropped unread."""

import json
import socket

from hvdkit.runtime.watch.datagrams import Datagrams


def test_strangers_are_not_read() -> None:
    notes = Datagrams(0, 1, lambda item: [item])
    try:
        address = notes._socket.getsockname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for content in (
                b"[" * 60000,
                b"",
                b"\xff" * 100,
                json.dumps([0, "lie"]).encode(),
                b"0" * 16 + b'[0, "lie"]',
            ):
                stranger.sendto(content, address)
        notes.send(0, {"a": 1})
        assert list(notes.receive()) == [(0, {"a": 1})]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as insider:
            for content in (b"[" * 60000, b"3", b"[7, 1]", b"null"):
                insider.sendto(notes._secret + content, address)
        assert list(notes.receive()) == []
    finally:
        notes.close()
