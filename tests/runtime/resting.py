"""A job whose engine rests between operations; run by test_resting_engine.py."""

import time

import torch

import hvdkit as hvd


def seconds_of_an_operation(name: str) -> float:
    start = time.perf_counter()
    total = hvd.allreduce(torch.ones(3), op=hvd.Sum, name=name)
    assert total.tolist() == [hvd.size()] * 3
    return time.perf_counter() - start


hvd.init()
seconds_of_an_operation("first")
slowest_s = 0.0
for number in range(5):
    time.sleep(0.3)
    hvd.allreduce(torch.ones(1), strategy="mpi")  # the ranks wake at the same time
    slowest_s = max(slowest_s, seconds_of_an_operation(f"after a pause {number}"))

if hvd.rank() == 1:
    time.sleep(1.5)
late_s = seconds_of_an_operation("rank 1 is late")

time.sleep(0.2)
before_s = time.process_time()
time.sleep(1)
busy_s = time.process_time() - before_s

hvd.allreduce(torch.ones(1), strategy="mpi")
start = time.perf_counter()
hvd.shutdown()
print(f"slowest_s={slowest_s:.4f} late_s={late_s:.4f} busy_s={busy_s:.4f} "
      f"shutdown_s={time.perf_counter() - start:.4f}", flush=True)  # fmt: skip
