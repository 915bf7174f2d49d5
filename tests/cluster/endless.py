"""A job that takes steps without end; each rank leaves a file when it has begun.  python endless.py FOLDER LIMIT_S"""

import sys
from pathlib import Path

import torch

import hvdkit as hvd
from hvdkit.runtime import limit_hangs

folder, limit_s = Path(sys.argv[1]), float(sys.argv[2])
limit_hangs(limit_s, default_s=60)
world = hvd.init()
model = torch.nn.Linear(3, 3)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
steps = 0
while True:
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    steps += 1
    if steps == 5:
        (folder / f"rank{world.rank}").touch()
