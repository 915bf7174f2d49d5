"""A job of watched collectives; run by the tests beside it.  python watched.py WAY [ARGUMENT ...]"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

WAY, *WORDS = sys.argv[1:]
if WAY == "serialized":
    import mpi4py

    mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI  # noqa: F401

import hvdkit as hvd  # noqa: E402, after MPI's settings

world = hvd.init()
last = world.rank == world.size - 1


@contextmanager
def watched(name: str, kind: str = "barrier") -> Iterator[None]:
    world.watch.begin(name, kind, "mpi", 40)
    try:
        yield
    finally:
        world.watch.end()


def barrier(name: str) -> None:
    assert world.comm is not None
    with watched(name):
        world.comm.barrier()


def say(**values: float) -> None:
    if world.rank == 0:
        print(*(f"{key}={value}" for key, value in values.items()), flush=True)


if WAY == "serialized":
    print("worked to the end", flush=True)
elif WAY == "late":
    barrier("first")
    if last:
        time.sleep(float(WORDS[0]))
    barrier("bucket 3 of optimizer 0")
    hvd.shutdown()  # notes may still be on their way
    world = hvd.init()
    barrier("first")
    print("worked to the end", flush=True)
elif WAY == "stopped":
    if last:
        subprocess.Popen(["/bin/sh", "-c", f"sleep {WORDS[0]}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    barrier("bucket 3 of optimizer 0")
    print("worked to the end", flush=True)
elif WAY == "crossed":
    assert world.comm is not None
    other = world.comm.Dup()
    say(stuck_at=time.time())
    if last:
        with watched("loss", "all-gather"):
            other.allgather(1)
    barrier("bucket 3 of optimizer 0")
elif WAY == "never":
    say(stuck_at=time.time())
    if last:
        time.sleep(1000)
    barrier("bucket 3 of optimizer 0")
elif WAY == "gone":
    if last:
        sys.exit(0)
    with watched("a wait that ends by itself"):
        time.sleep(float(WORDS[0]))
    print("worked to the end", flush=True)
elif WAY == "timeline":
    hvd.allreduce(torch.ones(10), name="before")
    say(begin_us=time.monotonic_ns() / 1000)
    with watched("around"):
        time.sleep(0.02)
        hvd.allreduce(torch.ones(10), name="inside")
        time.sleep(0.02)
    say(end_us=time.monotonic_ns() / 1000)
    if WORDS == ["kill"]:
        with watched("the last"):
            time.sleep(3.5)
            if world.rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
elif WAY == "dynamic":
    first, second = WORDS
    for path, name in ((first, "one"), (second, "two")):
        with watched(f"before {name}"):
            hvd.allreduce(torch.ones(10), name=f"before.{name}")
        hvd.start_timeline(path, mark_cycles=name == "two")
        hvd.start_timeline(path, mark_cycles=name == "two")
        with watched(name):
            hvd.allreduce(torch.ones(10), name=name)
        if name == "one":
            hvd.stop_timeline()
            hvd.stop_timeline()
            say(first_is_complete=Path(first).exists() and not Path(f"{first}.horovod").exists())
        else:
            # The engine marks a cycle when it begins: the one that reduced "two" may have begun unrecorded.
            hvd.allreduce(torch.ones(10), name="one cycle on")
else:
    raise ValueError(WAY)
