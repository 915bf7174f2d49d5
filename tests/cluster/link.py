"""The speed of the links between a cluster's hosts: each eth0 sends no faster than this (tc's token bucket).

The bucket is small, so that a message of some tens of KB does not slip through at the machine's own speed; for that
the kernel must not hand over 64 KB at once either.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.cluster.hosts import Host

BURST_KIB = 32


def why_no_limit() -> str:
    """Why links cannot be slowed down here; empty if they can."""
    return "" if shutil.which("tc") else "tc missing: apt-get install -y iproute2"


def limit_rate(hosts: Sequence[Host], bits_per_s: float) -> None:
    """From now on each of `hosts` sends at most `bits_per_s`, counted with all headers, also after earlier calls."""
    limit = ["tbf", "rate", f"{bits_per_s:.0f}bit", "burst", f"{BURST_KIB}kb", "latency", "50ms"]
    for host in hosts:
        enter = ["nsenter", "--net", "--target", str(host.pid)]
        for command in (
            ["ip", "link", "set", "eth0", "gso_max_size", str(BURST_KIB * 512)],
            ["tc", "qdisc", "replace", "dev", "eth0", "root", *limit],
        ):
            done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{host.name}: {' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def cut(hosts: Sequence[Host]) -> Iterator[None]:
    """Within it two `hosts` cannot reach each other, and are not told so: what they send is addressed to nobody."""
    neighbours = [(hosts[0], "10.77.0.2"), (hosts[1], "10.77.0.1")]

    def tell(*words: str) -> None:
        for host, other in neighbours:
            enter = ["nsenter", "--net", "--target", str(host.pid), "ip", "neigh"]
            subprocess.run([*enter, words[0], other, *words[1:], "dev", "eth0"], check=True, capture_output=True)

    tell("replace", "lladdr", "02:00:00:00:00:01", "nud", "permanent")
    try:
        yield
    finally:
        tell("del")
