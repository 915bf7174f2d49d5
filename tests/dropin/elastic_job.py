"""An elastic job: one worker dies, the other goes on, a new one joins.  python elastic_job.py FOLDER

Every worker appends what happens to FOLDER/HOST.jsonl; FOLDER/more asks for the new one (see test_elastic.py).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hvdkit as hvd

FOLDER = Path(sys.argv[1])
HOST = os.environ["HOROVOD_HOSTNAME"]
ITEMS, EPOCHS = 24, 2
DIES_AT_STEP, WAITS_AT_ITEM = 6, 18


def note(event: str, **facts: Any) -> None:
    with (FOLDER / f"{HOST}.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "rank": hvd.rank(), "size": hvd.size(), **facts}) + "\n")


hvd.init()
torch.manual_seed(hvd.rank())  # rank 0's weights go to all
model = nn.Linear(3, 1).double()
data = torch.randn(ITEMS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(model.parameters(), lr=0.1), model.named_parameters())
sampler = hvd.elastic.ElasticSampler(data, shuffle=False)
half = nn.ParameterList([nn.Parameter(torch.tensor([1.5 + hvd.rank()]).bfloat16())])
state = hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler, half=half, epoch=0, steps=0)
state.register_reset_callbacks([lambda: note("reset")])


@hvd.elastic.run
def train(state: Any) -> None:
    note("start", steps=state.steps, half=half[0].item())
    while state.epoch < EPOCHS:
        for item in sampler:
            if hvd.size() == 1 and sampler.processed_num == WAITS_AT_ITEM:
                (FOLDER / "more").touch()
                while True:  # left by the news that hosts have changed
                    state.check_host_updates()
                    time.sleep(0.1)
            optimizer.zero_grad()
            model(data[item]).pow(2).sum().backward()
            if HOST == "127.0.0.1" and state.steps == DIES_AT_STEP:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()
            sampler.record_batch(state.steps, 1)
            state.steps += 1
            state.commit()
        state.epoch += 1
        sampler.set_epoch(state.epoch)
        state.commit()


train(state)
note("end", steps=state.steps, weight=model.weight.tolist())
