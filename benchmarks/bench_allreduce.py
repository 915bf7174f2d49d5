"""How long does an all-reduce of float32 take: Horovod's engine beside the MPI library itself?

The algorithms take turns within each repetition, so that a machine whose speed drifts treats them alike. Bus
bandwidth is 2(p-1)/p x bytes / time, as nccl-tests defines it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.job import print_record, print_table, run_ranks

KIB = 1024
SIZES = (KIB, 64 * KIB, KIB**2, 4 * KIB**2, 32 * KIB**2, 128 * KIB**2)


def measure(largest: int, repeats: int) -> None:
    """Run on every rank; rank 0 prints."""
    import hvdkit as hvd
    from hvdkit.runtime import require_world

    hvd.init()
    world = require_world()
    mpi = world.comm
    assert mpi is not None, "this benchmark runs under mpirun"
    rows, results = [], []
    for nbytes in (size for size in SIZES if size <= largest):
        data = torch.ones(nbytes // 4)
        calls: dict[str, Callable[[], object]] = {
            "horovod": lambda data=data: hvd.allreduce_(data, op=hvd.Average, name="bench"),
            "mpi": lambda data=data: mpi.Allreduce(_in_place(), data.numpy()),
        }
        count = max(3, min(repeats, repeats * 16 * KIB**2 // nbytes))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repetition in range(count + 2):
            for name, call in calls.items():
                mpi.Barrier()
                start = time.perf_counter()
                call()
                if repetition >= 2:  # two to warm up
                    times[name].append(mpi.allreduce(time.perf_counter() - start) / world.size)
                data.fill_(1)
        for name, seconds in times.items():
            median = statistics.median(seconds)
            bandwidth = 2 * (world.size - 1) / world.size * nbytes / median / 1e9
            ratio = statistics.median(times["horovod"]) / median
            results.append({"bytes": nbytes, "algorithm": name, "median_s": median, "mean_s": statistics.mean(seconds)})
            rows.append([f"{nbytes / KIB:.0f}", name, f"{median * 1e3:.3f}", f"{statistics.mean(seconds) * 1e3:.3f}",
                         f"{bandwidth:.2f}", f"{ratio:.2f}"])  # fmt: skip
    if world.is_root:
        header = ["KiB", "algorithm", "median ms", "mean ms", "bus GB/s", "times as fast as horovod"]
        print_table(f"all-reduce of float32, {world.size} ranks", header, rows)
        print_record("allreduce", world.size, results)


def _in_place() -> object:
    from hvdkit.runtime.mpi import load_mpi

    return load_mpi().IN_PLACE


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="one run for each number (default: 2 4)")
    parser.add_argument("--largest-mib", type=float, default=128, help="largest message, MiB (default: 128)")
    parser.add_argument("--repeats", type=int, default=30, help="repetitions per size; fewer for large ones")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        measure(int(options.largest_mib * KIB**2), options.repeats)
        return
    for ranks in options.ranks:
        run_ranks(ranks, __file__, "--as-rank", "--largest-mib", str(options.largest_mib), "--repeats",
                  str(options.repeats))  # fmt: skip


if __name__ == "__main__":
    main()
