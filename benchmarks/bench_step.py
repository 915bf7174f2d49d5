"""How long does a training step wait for communication: hvdkit beside stock Horovod and PyTorch's DDP?

Every arm trains the same GPT on the same batches, with the same threads per rank. The arms take turns in rounds, each
a job of its own. `local only` runs as many ranks at once without any communication, and no library started; what a step
takes longer than that, in the same round, is its exposed communication. Peak memory is the largest of the ranks'.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.job import print_record, print_table
from benchmarks.measured_job import UNAVAILABLE, JobError, end_when_told, on_this_machine, report, run_job
from benchmarks.step_arms import ARMS, OPTIMIZERS, SIZES, StepOptions, measure_steps
from benchmarks.step_picture import draw_steps
from hvdkit.runtime.world import usable_cores

DEFAULT_ARMS = ("local", "stock", "stock-groups", "ddp", "hvdkit")
MEBIBYTE = 1024**2
# Same weights, same tokens, same sums of gradients: the arms differ by rounding only.
LOSS_TOLERANCE = 3e-4


def compare(ranks: int, options: StepOptions, arms: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Run the jobs in turn; returns one record for each arm, with one entry for each round."""
    jobs: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in [arm for arm in arms if arm in jobs]:
            start = time.perf_counter()
            reports = run_job(on_this_machine(ranks, __file__, "--rank-of", arm, *options.words()), ranks)
            if UNAVAILABLE in reports[0]:
                print(f"left out: {ARMS[arm].label}: {reports[0][UNAVAILABLE]}", flush=True)
                del jobs[arm]
                continue
            jobs[arm].append(reports)
            print(f"{ranks} ranks, {options.model}, {options.optimizer}, round {number + 1} of {rounds}: "
                  f"{ARMS[arm].label}: {_mean_step(reports) * 1e3:.0f} ms a step "
                  f"(the job: {time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
    records = [_summarise(ranks, options, arm, reports) for arm, reports in jobs.items()]
    local = next((record for record in records if record["arm"] == "local"), None)
    for record in records:
        record["exposed_s"] = local and [
            mean - alone for mean, alone in zip(record["job_mean_s"], local["job_mean_s"], strict=True)
        ]
    _check_losses(records, options)
    return records


def _mean_step(reports: list[dict[str, Any]]) -> float:
    return statistics.mean(seconds for rank in reports for seconds in rank["step_s"])


def _summarise(ranks: int, options: StepOptions, arm: str, jobs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    step_s = [seconds for reports in jobs for rank in reports for seconds in rank["step_s"]]
    last = options.warmup + options.steps - 1
    return {
        "arm": arm,
        "ranks": ranks,
        "model": options.model,
        "parameters": jobs[0][0]["parameters"],
        "tokens_per_rank": jobs[0][0]["tokens_per_step"],
        "optimizer": options.optimizer,
        "threads": options.threads,
        "mean_s": statistics.mean(step_s),
        "median_s": statistics.median(step_s),
        "job_mean_s": [_mean_step(reports) for reports in jobs],
        "pss_peak_bytes": max(rank["pss_peak_bytes"] for reports in jobs for rank in reports),
        "resident_peak_bytes": max(rank["resident_peak_bytes"] for reports in jobs for rank in reports),
        "losses": [statistics.mean(rank["losses"][last] for rank in reports) for reports in jobs],
    }


def _check_losses(records: list[dict[str, Any]], options: StepOptions) -> None:
    """All arms that aggregate without loss must have trained the same model."""
    losses = {record["arm"]: record["losses"] for record in records if ARMS[record["arm"]].is_exact}
    found = [loss for arm in losses.values() for loss in arm]
    if found and max(found) - min(found) > LOSS_TOLERANCE * max(found):
        raise JobError(f"the arms did not train the same {options.model}: losses at the last timed step {losses}")


def print_comparison(records: list[dict[str, Any]]) -> None:
    """The table of one model, optimizer and number of ranks."""
    first = records[0]
    exposed = {record["arm"]: statistics.mean(record["exposed_s"]) for record in records if record["exposed_s"]}
    rows = [
        [
            ARMS[record["arm"]].label,
            f"{record['mean_s'] * 1e3:.1f}",
            f"{record['median_s'] * 1e3:.1f}",
            f"{min(record['job_mean_s']) * 1e3:.1f} to {max(record['job_mean_s']) * 1e3:.1f}",
            f"{exposed[record['arm']] * 1e3:.1f}" if record["arm"] in exposed else "-",
            f"{exposed[record['arm']] / exposed['stock']:.2f}" if exposed.get("stock", 0) > 0 else "-",
            f"{record['pss_peak_bytes'] / MEBIBYTE:.0f}",
            f"{record['resident_peak_bytes'] / MEBIBYTE:.0f}",
        ]
        for record in records
    ]
    header = ["arm", "step ms (mean)", "median ms", "jobs' means, ms", "exposed ms", "of stock's", "peak PSS MiB",
              "VmHWM MiB"]  # fmt: skip
    machine = f"{first['ranks']} ranks x {first['threads']} threads on {len(usable_cores())} cores"
    model = f"GPT of {first['parameters'] / 1e6:.1f}M parameters ({first['model']}), {first['optimizer']}"
    tokens = f"{first['tokens_per_rank']} tokens per rank in sequences of {SIZES[first['model']].config.context}"
    print_table(f"\na training step, {machine}: {model}, {tokens}", header, rows)


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), help="default: 4m, and 33m 132m where each rank "
                        "has a core")  # fmt: skip
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT_ARMS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8], help="one comparison each (default: 2 8)")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of each arm (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each job (default: 12)")
    parser.add_argument("--threads", type=int, default=0, help="per rank (default: cores / ranks, at least 1)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--rank-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        arm, *words, folder = options.rank_of
        report(Path(folder), measure_steps(arm, StepOptions.from_words(words), Path(folder)))
        return
    end_when_told()
    everything = []
    cores = len(usable_cores())
    for ranks in options.ranks:
        comparisons = []
        for model in options.models or (["4m", "33m", "132m"] if ranks <= cores else ["4m"]):
            for optimizer in options.optimizers:
                threads = options.threads or max(1, cores // ranks)
                step = StepOptions(model, optimizer, threads, options.steps)
                try:
                    comparisons.append(compare(ranks, step, options.arms, options.rounds))
                except JobError as error:
                    sys.exit(str(error))
                print_comparison(comparisons[-1])
        print_record("step", ranks, [record for records in comparisons for record in records])
        everything += comparisons
    print(f"picture: {draw_steps(everything, options.results / 'step.png')}")


if __name__ == "__main__":
    main()
