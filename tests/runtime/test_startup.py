"""Ranks find each other, agree, start twice, and fail together."""

import sys

import pytest

from hvdkit import runtime
from hvdkit.errors import DataError
from hvdkit.runtime import World
from tests.jobs import LAUNCHERS, run_program, succeed


def test_objects_arrive_in_rank_order(world: World) -> None:
    assert runtime.gather_objects(world, world.rank) == list(range(world.size))
    assert runtime.share_object(world, world.rank, root=world.size - 1) == world.size - 1


def test_an_error_on_one_rank_is_raised_on_all(world: World) -> None:
    fault = DataError("no such file") if world.rank == world.size - 1 else None
    with pytest.raises(DataError, match="no such file"):
        runtime.raise_together(world, fault)
    runtime.raise_together(world, None)


SEND_BEFORE_RECEIVE = """
import time
import numpy as np
import hvdkit as hvd
from hvdkit.runtime.mpi import load_mpi
hvd.init()
comm = load_mpi().COMM_WORLD.Dup()
data = np.zeros(300_000, dtype=np.uint8)
comm.Barrier()
if comm.rank == 0:
    send, deadline = comm.Isend(data, 1), time.monotonic() + 2
    while not (is_sent := send.Test()) and time.monotonic() < deadline:
        pass
    print(is_sent)
comm.Barrier()
if comm.rank == 1:
    comm.Recv(data, 0)
else:
    send.Wait()
"""


@pytest.mark.launch
@pytest.mark.parametrize("told", [None, "65536"])
def test_blocks_go_at_once_over_tcp_unless_the_user_says_otherwise(told: str | None) -> None:
    """A message beyond Open MPI's limit waits until the receiver answers, one below does not."""
    limit = ["--mca", "btl_tcp_eager_limit", told] if told else []
    over_tcp = ["--mca", "pml", "ob1", "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo"]
    command = [*LAUNCHERS["mpirun"], *over_tcp, *limit, "-np", "2", sys.executable, "-c", SEND_BEFORE_RECEIVE]
    assert succeed(run_program(command)).stdout.split() == [str(told is None)]
