"""A rank that uses Horovod, MPI and shared memory: `python communicating.py FOLDER DEED`.

At attempt 0 it adds up for ever, and with the deed `raise` rank 1 raises instead; at a later one it ends.
"""

import json
import os
import sys
from pathlib import Path

import torch

import hvdkit as hvd

world, info, folder = hvd.init(), hvd.launch_info(), Path(sys.argv[1])
shared = hvd.empty_shared(5000)
job = f"{int(os.environ['PMIX_NAMESPACE']):x}"
here = {"pid": os.getpid(), "name": info.run_name, "parent": os.getppid(), "session": os.environ["PMIX_SERVER_TMPDIR"]}
here["segments"] = [str(path) for path in Path("/dev/shm").iterdir() if job in path.name.split(".")]
hvd.barrier()
(folder / f"{info.attempt}.{world.rank}.part").write_text(json.dumps(here))
(folder / f"{info.attempt}.{world.rank}.part").rename(folder / f"{info.attempt}.{world.rank}")
while info.attempt == 0:
    hvd.allreduce(torch.ones(3), name="go on")
    if sys.argv[2] == "raise" and world.rank == 1:
        raise ValueError("this rank is broken")
