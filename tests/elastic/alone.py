"""`hvd.elastic.run` in one process, with the exceptions that end a call of the training function.  python alone.py"""

import threading
import time
from typing import Any

import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime.engine import horovod

exceptions = horovod("horovod.common.exceptions")

hvd.init()
model = nn.Linear(1, 1)
nn.init.zeros_(model.weight)
sampler = hvd.elastic.ElasticSampler(range(100))
state = hvd.elastic.TorchState(model=model, sampler=sampler, steps=[], lost=False)
resets: list[int] = []
state.register_reset_callbacks([lambda: resets.append(len(state.steps))])


def step(state: Any) -> None:
    with torch.no_grad():
        model.weight += 1
    sampler.record_batch(len(state.steps), 1)
    state.steps.append(len(state.steps))


def facts(state: Any) -> tuple[int, float, int]:
    return len(state.steps), model.weight.item(), sampler.processed_num


def tell_of_hosts_during_a_restart() -> None:
    while hvd.is_initialized():
        time.sleep(0.0001)
    state.on_hosts_updated(time.time(), 2)


calls: list[tuple[int, float, int]] = []


@hvd.elastic.run
def train(state: Any, word: str, *, number: int) -> str:
    assert (word, number) == ("word", 3)
    calls.append(facts(state))
    if len(calls) == 1:
        step(state)
        state.commit()
        step(state)
        raise exceptions.HorovodInternalError("one step since the commit, which is undone")
    if len(calls) == 2:
        step(state)
        raise exceptions.HostsUpdatedInterrupt(True)  # Horovod's `skip_sync`: workers only left
    if len(calls) == 3:
        step(state)
        raise exceptions.HorovodInternalError("one step since the graceful reset, which was a commit")
    if len(calls) == 4:
        threading.Thread(target=tell_of_hosts_during_a_restart).start()
        raise exceptions.HostsUpdatedInterrupt(False)
    if len(calls) == 5:
        state.check_host_updates()
        raise AssertionError("news that came during the restart was lost")
    return "done"


assert train(state, "word", number=3) == "done"
assert calls == [(0, 0.0, 0), (1, 1.0, 1), (2, 2.0, 2), (2, 2.0, 2), (2, 2.0, 2), (2, 2.0, 2)], calls
assert resets == [1, 2, 2, 2, 2], resets
print("as it should be")
