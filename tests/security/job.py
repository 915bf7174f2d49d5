"""A rank of a job that is watched from outside: it says READY, computes until a file appears, and says its result."""

import sys
import time
from pathlib import Path

import torch

import hvdkit as hvd
from hvdkit.collectives import empty_shared


def main() -> None:
    world = hvd.init()
    stop = Path(sys.argv[1])
    ones = torch.ones(300_000)
    shared = empty_shared(1000) if world.backend == "mpi" else None  # lives as long as the job
    parameter = torch.nn.Parameter(torch.zeros(100_000))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=1.0))
    steps = wrong = 0
    is_last = False
    while not is_last:
        optimizer.zero_grad()
        (parameter * (world.rank + 1)).sum().backward()
        optimizer.step()
        steps += 1
        wrong += int(hvd.allreduce(ones, op=hvd.Sum, name="ones").sum() != 300_000 * world.size)
        is_last = bool(hvd.allreduce(torch.tensor([float(stop.exists())]), op=hvd.Max, name="last")[0])
        if steps == 3:
            (stop.parent / f"ready-{world.rank}").touch()
        time.sleep(0.02)
    wrong += int(not torch.allclose(parameter.detach(), torch.full((100_000,), -steps * (world.size + 1) / 2)))
    print(f"rank {world.rank}: {steps > 3} {wrong} wrong {shared is None or float(shared.sum())}", flush=True)


if __name__ == "__main__":
    main()
