"""A script of a user's, run by test_launchers.py under each launcher: one import changed, MPI used beside it.

Writes what each rank saw to FOLDER/RANK.json.  python tour.py FOLDER first|later
"""

import atexit
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World

FOLDER, MPI4PY = Path(sys.argv[1]), sys.argv[2]
seen: dict[str, Any] = {}


def message(call: Any) -> str:
    """What a call raises."""
    try:
        return f"nothing raised, {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def save() -> None:
    """Runs when the script has ended, before MPI is finalised: it may still communicate."""
    if world.comm is not None:
        from mpi4py import MPI

        seen["sum in an exit handler"] = MPI.COMM_WORLD.allreduce(1)
    (FOLDER / f"{world.rank}.json").write_text(json.dumps(seen))


def train(world: World, optimizer: Any, model: nn.Module) -> float:
    """One step; every rank ends with the same weight."""
    optimizer.zero_grad()
    (model(torch.ones(1, 2)) * (world.rank + 1)).sum().backward()
    optimizer.step()
    return round(model.weight.sum().item(), 5)


atexit.register(save)
if MPI4PY == "first":
    from mpi4py import MPI

    seen["sum before init"] = MPI.COMM_WORLD.allreduce(1)

seen["before"] = [message(call) for call in (hvd.rank, hvd.size, lambda: hvd.allreduce(torch.ones(1)))]
seen["initialised"] = [hvd.is_initialized()]
world = hvd.init()
assert hvd.init() is world
seen["initialised"].append(hvd.is_initialized())
seen["place"] = [
    (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), hvd.cross_rank(), hvd.cross_size()),
    (world.rank, world.size, world.local_rank, world.local_size, world.cross_rank, world.cross_size),
]
seen["backend"] = [world.backend, hvd.mpi_enabled(), hvd.gloo_enabled()]
seen["sum"] = hvd.allreduce(torch.tensor([1, 2]), op=hvd.Sum).tolist()
seen["half"] = hvd.allreduce(torch.full((2,), world.rank + 0.5, dtype=torch.bfloat16)).tolist()
seen["gathered"] = hvd.allgather_object(world.rank)
if MPI4PY == "later" and world.comm is not None:
    from mpi4py import MPI

    seen["sum after init"] = MPI.COMM_WORLD.allreduce(1)

model = nn.Linear(2, 1, bias=False)
nn.init.ones_(model.weight)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.25))
seen["trained"] = [train(world, optimizer, model)]

# A handle that is never waited for, and the numbers of Horovod's handles beginning again.
forgotten = hvd.allreduce_async(torch.ones(3, dtype=torch.bfloat16))
while not hvd.poll(forgotten):
    pass
hvd.barrier()
hvd.shutdown()
seen["initialised"].append(hvd.is_initialized())
seen["after"] = [message(call) for call in (hvd.rank, hvd.barrier, lambda: hvd.DistributedOptimizer(optimizer))]
seen["step alone"] = message(optimizer.step) if world.size > 1 else "ValueError"

last = hvd.ProcessSet([world.size - 1])
world = hvd.init(process_sets=[last] if world.size > 1 else None)
seen["initialised"].append(hvd.is_initialized())
seen["kinds"] = [str(hvd.allreduce(torch.ones(1) * number).dtype) for number in range(4)]
seen["trained"].append(train(world, optimizer, model))
if world.size > 1:
    seen["set"] = [last.included(), last.size()]
    if last.included():
        seen["set"].append(hvd.allreduce(torch.ones(1), process_set=last, op=hvd.Sum).item())
seen["known set twice"] = message(lambda: hvd.init(process_sets=[hvd.ProcessSet([*range(world.size)])]))
hvd.barrier()

if world.comm is not None and world.size > 2:
    hvd.shutdown()
    everyone = world.rank
    world = hvd.init(comm=[2] if world.rank == 2 else [0, 1])
    seen["halves"] = [world.size, world.rank, hvd.allreduce(torch.tensor(everyone), op=hvd.Sum).item()]
    hvd.shutdown()
    if everyone == 1:  # the other ranks would look for it
        seen["left out"] = message(lambda: hvd.init(comm=(0, 2)))
    world = hvd.init(comm=MPI.COMM_WORLD.Split(everyone % 2, everyone))
    seen["split"] = [world.size, hvd.allreduce(torch.tensor(everyone), op=hvd.Sum).item()]
    hvd.shutdown()
    world = hvd.init()
# No hvd.shutdown() at the end, as in most scripts.
