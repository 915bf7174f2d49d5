"""A job whose last rank fails in the way that is named; run by test_failure.py.  python failing.py WAY"""

import multiprocessing
import os
import signal
import sys
import threading
import time

import torch

import hvdkit as hvd

WAY = sys.argv[1]
world = hvd.init()
last = world.rank == world.size - 1
hvd.barrier()
if last:
    print(f"fails at {time.time()}", flush=True)


def wait_for_all() -> None:
    """What the other ranks are at: reductions without end, so that a job that goes on is killed by the time limit."""
    while True:
        hvd.allreduce(torch.ones(1), name="step")


if WAY == "hook":
    model = torch.nn.Linear(3, 3)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    if last:
        model.weight.register_hook(lambda _: [][1])
    while True:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
elif WAY == "error":
    if last:
        raise KeyError("broken on purpose")
    wait_for_all()
elif WAY == "exit":
    if last:
        sys.exit(3)
    wait_for_all()
elif WAY == "exit beside MPI":
    if last:
        sys.exit(3)
    assert world.comm is not None
    world.comm.barrier()
elif WAY == "exit with words":
    if last:
        sys.exit("no data for this rank")
    wait_for_all()
elif WAY == "os._exit":
    if last:
        os._exit(3)
    wait_for_all()
elif WAY == "kill":
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()
elif WAY == "segfault":
    if last:
        os.kill(os.getpid(), signal.SIGSEGV)
    wait_for_all()
elif WAY == "interrupt":
    if last:
        signal.raise_signal(signal.SIGINT)
    wait_for_all()
elif WAY == "leave":
    if last:
        sys.exit(0)
    wait_for_all()
elif WAY == "nothing":
    if last:
        thread = threading.Thread(target=lambda: [][1])
        thread.start()
        thread.join()
    try:
        sys.exit(4)  # an exit that somebody catches is none
    except SystemExit as caught:
        assert caught.code == 4 and caught.args == (4,)
    hvd.allreduce(torch.ones(1))
    child = multiprocessing.get_context("fork").Process(target=sys.exit, args=(5,))  # which is not a rank
    child.start()
    child.join()
    assert child.exitcode == 5
    if last:
        sys.exit(0)
    time.sleep(1)  # the others go on by themselves after the first has left
    if world.comm is not None:
        from mpi4py import MPI

        assert MPI.COMM_SELF.allreduce(2) == 2
    print("worked to the end", flush=True)
else:
    raise ValueError(WAY)
