"""A link is as slow as it was told to be."""

import json
import sys

import pytest

from tests.cluster.hosts import Host
from tests.cluster.link import limit_rate, why_no_limit
from tests.jobs import run_program, succeed

pytestmark = [pytest.mark.hosts, pytest.mark.launch]

_RECEIVE_AND_SEND = """
import json, socket, subprocess, sys, time
nbytes = int(sys.argv[1])
listener = socket.create_server(("0.0.0.0", 0))
sender = f"import socket; socket.create_connection(('node1', {listener.getsockname()[1]})).sendall(bytes({nbytes}))"
process = subprocess.Popen(["ssh", "node2", f'{sys.executable} -c "{sender}"'])
connection, _ = listener.accept()
missing = nbytes - len(connection.recv(1))
start = time.perf_counter()
while missing:
    missing -= len(connection.recv(min(missing, 1 << 20)))
print(json.dumps(time.perf_counter() - start))
sys.exit(process.wait())
"""


@pytest.mark.skipif(bool(why_no_limit()), reason=why_no_limit() or "-")
def test_a_link_carries_what_it_was_told(hosts: list[Host]) -> None:
    bound_s = {}
    seconds = {}
    for megabits in (400, 100):
        limit_rate(hosts, megabits * 1e6)
        nbytes = megabits * 1_000_000 // 8 // 2
        bound_s[megabits] = 0.5
        result = succeed(run_program(hosts[0].enter(sys.executable, "-c", _RECEIVE_AND_SEND, str(nbytes))))
        seconds[megabits] = json.loads(result.stdout)
    for megabits, bound in bound_s.items():
        # Headers make it longer, the bucket a little shorter; a busy machine only longer.
        assert 0.97 * bound < seconds[megabits] < 1.5 * bound, seconds
