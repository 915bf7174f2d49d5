"""What each rank of a job over several hosts does: writes down its world and a sum over all ranks.

    python report.py FOLDER [RANK]

With RANK that one then dies by SIGKILL, while the others go on adding up for ever.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import hvdkit as hvd

folder = Path(sys.argv[1])
world = hvd.init()
total = hvd.allreduce(torch.arange(4.0) + world.rank, op=hvd.Sum, name="report")
fields = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size", "backend", "hostname", "threads")
report = {name: getattr(world, name) for name in fields} | {"total": total.tolist()}
for name in ("comm", "local_comm", "cross_comm"):
    communicator = getattr(world, name)
    report[name] = None if communicator is None else communicator.allgather(world.rank)
(folder / f"{world.rank}.json").write_text(json.dumps(report))
hvd.barrier()
if len(sys.argv) > 2:
    if world.rank == int(sys.argv[2]):
        (folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        hvd.allreduce(total, name="go on")
