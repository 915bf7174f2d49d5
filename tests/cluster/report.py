"""What each rank of a job over several hosts does: writes down its world, a sum over all ranks, and what it reads.

    python report.py FOLDER [RANK]

The tokens are cached in FOLDER, which all hosts share, so that their first ranks make the same cache at once. With RANK
that one then dies by SIGKILL, while the others go on adding up for ever.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import hvdkit as hvd
from hvdkit.data import CorpusConfig, prepare_corpus

folder = Path(sys.argv[1])
world = hvd.init()
total = hvd.allreduce(torch.arange(4.0) + world.rank, op=hvd.Sum, name="report")
fields = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size", "backend", "hostname", "threads")
report = {name: getattr(world, name) for name in fields} | {"total": total.tolist()}
for name in ("comm", "local_comm", "cross_comm"):
    communicator = getattr(world, name)
    report[name] = None if communicator is None else communicator.allgather(world.rank)
corpus = prepare_corpus(world, CorpusConfig(data=("LICENSE",), cache_dir=str(folder / "cache")))
report["tokens"] = [len(corpus.train), int(corpus.train.sum(dtype="int64")), len(corpus.validation)]
(folder / f"{world.rank}.json").write_text(json.dumps(report))
hvd.barrier()
if len(sys.argv) > 2:
    if world.rank == int(sys.argv[2]):
        (folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        hvd.allreduce(total, name="go on")
