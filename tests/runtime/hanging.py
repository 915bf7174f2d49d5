"""A job whose last rank hangs in the way that is named.  python hanging.py WHERE HOW LIMIT_S [SECONDS or a mark]

WHERE the others wait for it: "step" (hvdkit's collectives), "engine" (Horovod's) or "agreement". HOW it hangs:
"stopped" (by SIGSTOP, so that none of its threads answers) or "away" for SECONDS.
"""

import os
import signal
import sys
import time

import torch

import hvdkit as hvd
from hvdkit.runtime import gather_objects, limit_hangs

WHERE, HOW, LIMIT_S, *WORDS = sys.argv[1:]  # further words mark the process
limit_hangs(float(LIMIT_S), default_s=60)
world = hvd.init()
model = torch.nn.Linear(3, 3)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))


def work_together() -> None:
    """What every rank does next."""
    if WHERE == "step":
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    elif WHERE == "engine":
        hvd.allreduce(torch.ones(1), name="the sum")
    else:
        gather_objects(world, world.rank)


work_together()
if world.rank == world.size - 1:
    print(f"hangs at {time.time()}", flush=True)
    if HOW == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(float(WORDS[0]))
work_together()
print("worked to the end", flush=True)
