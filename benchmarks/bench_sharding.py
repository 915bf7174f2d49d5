"""What does a training step cost with a sharded model, in time and memory: hvdkit beside DDP and FSDP2 on Gloo?

As `bench_step.py`, whose jobs and turns these are, with fused AdamW. DDP has its optimizer's state cut by
ZeroRedundancyOptimizer (stage 1), FSDP2 (`fully_shard` on each layer) cuts everything (stage 3). `local only` steps the
whole AdamW without communication.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_step import MEBIBYTE, compare, fitting
from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import JobError
from benchmarks.step_arms import ARMS, SIZES, StepOptions
from benchmarks.step_picture import draw_steps
from benchmarks.step_turns import take_turns
from benchmarks.turns import JobFailedError
from hvdkit.runtime.world import usable_cores

DEFAULT_ARMS = ("local", "hvdkit", "ddp-zero", "fsdp2", "shard1", "shard1-shared", "shard2", "shard3")
_PEERS = ("local", "ddp-zero", "fsdp2")
Table = tuple[str, list[str], list[list[str]]]


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Times, the median over rounds of the ratio to each peer, and memory."""
    first = records[0]
    by_arm = {record["arm"]: record for record in records}
    peers = [arm for arm in _PEERS if arm in by_arm]
    rows = []
    for record in records:
        ratios = [
            statistics.median(
                mine / theirs for mine, theirs in zip(record["round_mean_s"], by_arm[peer]["round_mean_s"], strict=True)
            )
            for peer in peers
        ]
        rows.append([
            ARMS[record["arm"]].label,
            f"{record['mean_s'] * 1e3:.0f}",
            f"{min(record['round_mean_s']) * 1e3:.0f} to {max(record['round_mean_s']) * 1e3:.0f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{record['pss_peak_bytes'] / MEBIBYTE:.0f}",
            f"{record['resident_peak_bytes'] / MEBIBYTE:.0f}",
        ])  # fmt: skip
    header = ["arm", "step ms (mean)", "rounds' means, ms", *(f"of {ARMS[peer].label}" for peer in peers), "PSS MiB",
              "VmHWM MiB"]  # fmt: skip
    title = (
        f"a training step, {first['ranks']} ranks x {first['threads']} threads on {len(usable_cores())} cores: GPT of "
        f"{first['parameters'] / 1e6:.1f}M parameters ({first['model']}), {first['optimizer']}, "
        f"{first['tokens_per_rank']} tokens per rank"
    )
    return title, header, rows


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["33m", "132m"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT_ARMS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="one comparison each (default: 2 4)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each arm (default: 4)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn (default: 3)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--rank-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        arm, *words, folder = options.rank_of
        take_turns(arm, StepOptions.from_words(words), Path(folder))
        return
    comparisons, parts = [], []
    for ranks in options.ranks:
        for model in options.models:
            step = StepOptions(model, "adamw", max(1, len(usable_cores()) // ranks), options.steps)
            try:
                records = compare(ranks, step, fitting(options.arms, ranks, step), options.rounds, __file__)
            except (JobError, JobFailedError) as error:
                sys.exit(str(error))
            comparisons.append(records)
            title, header, rows = table(records)
            parts.append(print_table(f"\n{title}", header, rows))
    print_record("sharding", options.ranks, [record for records in comparisons for record in records])
    write_page(options.results, "sharding", "A training step with a sharded model", parts)
    print(f"picture: {draw_steps(comparisons, options.results / 'sharding.png')}")


if __name__ == "__main__":
    main()
