"""A job whose last rank of three comes late to two operations of Horovod's engine.

    python late.py SECONDS

Rank 1 has begun the second one without waiting for it.
"""

import sys
import time

import torch

import hvdkit as hvd

world = hvd.init()
late_s = float(sys.argv[1])


def come_to(name: str) -> None:
    """Sum ones under this name; the last rank comes late."""
    if world.rank == 2:
        time.sleep(late_s)
    assert hvd.allreduce(torch.ones(3), op=hvd.Sum, name=name).tolist() == [3] * 3


hvd.barrier()
come_to("awaited")
if world.rank == 1:
    handle = hvd.allreduce_async(torch.ones(3), op=hvd.Sum, name="begun")
    time.sleep(late_s)
    assert hvd.synchronize(handle).tolist() == [3] * 3
else:
    come_to("begun")
print("worked to the end", flush=True)
