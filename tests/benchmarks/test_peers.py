"""The peers of the collectives' benchmarks: each carries out every collective, right, and a wrong one is found out."""

import sys

import pytest
import torch

from benchmarks.collective import NAMES, Buffers, rounded
from benchmarks.peers import HVDKIT, TRIAD, peer_jobs
from benchmarks.peers.serve import Call, Session
from benchmarks.turns import Job, running
from hvdkit.collectives import STRATEGIES
from hvdkit.runtime import World
from tests.jobs import LAUNCHERS, ROOT, clean_environ

RANKS = 3


@pytest.mark.launch
def test_every_peer_carries_out_every_collective() -> None:
    peers = {(peer.script, peer.words): peer for name in NAMES for peer in peer_jobs(name, RANKS)}
    message = {"bytes": rounded(10_000, RANKS), "do": "check"}
    with running() as jobs:
        for peer in peers.values():
            script = str(ROOT / "benchmarks" / "peers" / peer.script)
            command = [*LAUNCHERS["mpirun"], "-np", str(RANKS), sys.executable, script, peer.name, *peer.words]
            jobs.append(Job(peer.name, command, clean_environ()))
        for peer, job in zip(peers.values(), jobs, strict=True):
            job.wait_until_ready(240)
            assert len(set(job.hello["pids"])) == RANKS
            with job.turn():
                for contender in job.hello["contenders"] if peer.name != TRIAD else ():
                    for collective in NAMES:
                        answer = job.ask({**message, "contender": contender, "collective": collective}, 120)
                        refused = peer.name == HVDKIT and "use one of" in answer.get("error", "")
                        assert "answer" in answer or refused, (contender, collective, answer)
                        noted = answer.get("answer") in STRATEGIES[:-1]
                        assert noted == contender.endswith(" auto"), (contender, collective, answer)
                command_of_time = {"warmup": 1, "repeats": 4, "collective": "allgather", **message, "do": "time"}
                times = job.ask({**command_of_time, "contender": job.hello["contenders"][0]}, 120)["answer"]
                assert len(times) == 4
                assert all(0 < seconds < 60 for seconds in times)
                refusal = job.ask({**message, "contender": "nobody", "collective": "allgather"}, 120)["error"]
                assert refusal == "KeyError: 'nobody'"


def test_a_wrong_result_is_found_out(world: World) -> None:
    comm = world.comm
    if comm is None:
        pytest.skip("the benchmarks run under MPI")

    def forgets_last(buffers: Buffers) -> Call:
        def call() -> None:
            whole = sum(comm.allgather(buffers.send.clone()), torch.zeros_like(buffers.send))
            buffers.receive[:-1] = whole[:-1]

        return call

    def too_short(buffers: Buffers) -> Call:
        return lambda: buffers.receive[1:]

    session = Session(comm, {"forgets": forgets_last, "short": too_short}, lambda contender, buffers: None)
    nbytes = rounded(400, world.size)
    count = nbytes // 4
    if world.size > 1:  # alone, nothing is to be done
        with pytest.raises(ValueError, match=f"the result of allreduce has 1 wrong elements of {count}"):
            session.do(do="check", contender="forgets", collective="allreduce", bytes=nbytes)
    with pytest.raises(ValueError, match=f"the result of allreduce has another shape of {count}"):
        session.do(do="check", contender="short", collective="allreduce", bytes=nbytes)
