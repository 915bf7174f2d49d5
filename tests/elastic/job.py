"""An elastic training job that notes what it does.  python job.py FOLDER [MODULE]

FOLDER/plan.json says what to train and what happens at which step; FOLDER/hosts is what the discovery script prints.
Every worker appends each batch before its step to a file of its own in FOLDER/batches, and writes how it ended to
FOLDER/ends. `state.history` has, for each step that counts, in which call of the training function it was made.
MODULE (hvdkit) may be horovod.torch, to see what Horovod itself does.
"""

import importlib
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.elastic.problem import losses_of, new_data, new_model

FOLDER = Path(sys.argv[1])
hvd: Any = importlib.import_module(sys.argv[2] if len(sys.argv) > 2 else "hvdkit")
WORKER = f"{os.environ['HOROVOD_HOSTNAME']}.{os.environ['HOROVOD_LOCAL_RANK']}"
RATE = 0.02


def main() -> None:
    plan = json.loads((FOLDER / "plan.json").read_text())
    hvd.init()
    torch.manual_seed(hvd.rank())  # rank 0's weights go to all
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE * hvd.size(), momentum=0.9)
    optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters())
    data = new_data(plan["samples"])
    sampler = hvd.elastic.ElasticSampler(data)
    loader = DataLoader(TensorDataset(data, torch.arange(len(data))), plan["batch"], sampler=sampler)
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler, epoch=0, history=[], done=[])
    first = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    if hvd.rank() == 0 and not (FOLDER / "first.json").exists():
        (FOLDER / "first.json").write_text(json.dumps(first))

    def scale_rate() -> None:
        for group in optimizer.param_groups:
            group["lr"] = RATE * hvd.size()

    state.register_reset_callbacks([scale_rate])
    die_in_backward(model[0].weight, state, plan)

    @hvd.elastic.run
    def train(state: Any) -> None:
        call = hvd.broadcast_object(uuid.uuid4().hex, name="call")
        while state.epoch < plan["epochs"]:
            if plan["epoch_at_top"]:
                sampler.set_epoch(state.epoch)
            for batch, indices in loader:
                change_hosts(state, plan["hosts"])
                real = sampler.count(len(batch)) if hasattr(sampler, "count") else len(batch)
                note(
                    call=call,
                    step=len(state.history),
                    epoch=state.epoch,
                    rank=hvd.rank(),
                    indices=indices.tolist()[:real],
                )
                optimizer.zero_grad()
                loss = losses_of(model, batch)[:real].mean()
                (optimizer.weigh(loss, real) if hasattr(optimizer, "weigh") else loss).backward()
                optimizer.step()
                sampler.record_batch(len(state.history), len(batch))
                state.history.append([call, optimizer.param_groups[0]["lr"], hvd.size()])
                if len(state.history) % plan["commit_every"] == 0:
                    state.commit()
            state.epoch += 1
            if not plan["epoch_at_top"]:
                sampler.set_epoch(state.epoch)

    train(state)
    last = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    (FOLDER / "ends" / f"{WORKER}.json").write_text(json.dumps({"history": state.history, "weights": last}))


def note(**facts: Any) -> None:
    with (FOLDER / "batches" / f"{WORKER}.{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def change_hosts(state: Any, hosts: dict[str, str]) -> None:
    """At the steps that the plan names: let the discovery script say something else, and wait until it is noticed."""
    step = str(len(state.history))
    if step not in hosts or step in state.done:
        return
    state.done.append(step)
    if hvd.rank() == 0:
        (FOLDER / "hosts.new").write_text(hosts[step])
        (FOLDER / "hosts.new").rename(FOLDER / "hosts")
    while True:  # left by the news
        state.check_host_updates()
        time.sleep(0.1)


def die_in_backward(parameter: torch.Tensor, state: Any, plan: dict[str, Any]) -> None:
    """Kill this process where the plan says so (or wait for it), when some gradients of the step are still to come."""

    def kill(gradient: torch.Tensor) -> None:
        step = str(len(state.history))
        mark = FOLDER / f"killed.{step}"
        if plan["kills"].get(step) == WORKER and not mark.exists():
            mark.touch()
            if plan["waits_for_killer"]:
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGKILL)

    parameter.register_hook(kill)


if __name__ == "__main__":
    main()
