"""How does the throughput of training grow with ranks, and is that what a model predicts?

Weak scaling keeps the sequences per rank, strong scaling those of all ranks together. Efficiency is tokens per second
over those of one rank, divided by the ranks. The prediction knows one rank alone, the cores, and (where hvdkit has a
cost model) the time of the gradients' all-reduce:

    step(p) = step of one rank alone with as many sequences, no library
              x max(1, p x threads / cores)
              + all-reduce of the gradients over p ranks

It leaves out what ranks take from each other besides cores (memory bandwidth, cache), and what backward hides of the
all-reduce. The jobs take turns in rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from torch import nn

from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import JobError, on_this_machine, report, run_job
from benchmarks.predicted_communication import predict_communication_s
from benchmarks.step_arms import OPTIMIZERS, SIZES, StepOptions, measure_steps
from benchmarks.step_picture import draw_scaling
from hvdkit.launch.job import end_when_told
from hvdkit.runtime import is_initialized
from hvdkit.runtime.world import usable_cores

Job = tuple[str, int, int]
"""Arm, ranks, sequences per rank."""


def plan(ranks: Sequence[int], per_rank: int, total: int) -> dict[str, list[tuple[int, int]]]:
    """For weak and for strong scaling the pairs (ranks, sequences per rank)."""
    return {"weak": [(p, per_rank) for p in ranks], "strong": [(p, total // p) for p in ranks]}


def measure_in_turn(jobs: Sequence[Job], options: StepOptions, rounds: int) -> dict[Job, dict[str, Any]]:
    """Mean step (s) of each job over all rounds, tokens per rank, and the predicted communication."""
    found: dict[Job, list[dict[str, Any]]] = {job: [] for job in jobs}
    for number in range(rounds):
        for arm, ranks, batch_size in jobs:
            start = time.perf_counter()
            step = StepOptions(options.model, options.optimizer, options.threads, options.steps, batch_size=batch_size)
            words = ["--rank-of", arm, *step.words()]
            alone = [sys.executable, __file__, *words]  # needs no launcher
            reports = run_job(alone if arm == "local" else on_this_machine(ranks, __file__, *words), ranks)
            mean_s = statistics.mean(seconds for rank in reports for seconds in rank["step_s"])
            found[arm, ranks, batch_size].append({**reports[0], "mean_s": mean_s})
            took = f"{mean_s * 1e3:.0f} ms a step (the job: {time.perf_counter() - start:.0f} s)"
            print(f"round {number + 1} of {rounds}: {arm}, {ranks} x {batch_size} sequences: {took}", flush=True)
    return {
        job: {
            "mean_s": statistics.mean(entry["mean_s"] for entry in entries),
            "job_mean_s": [entry["mean_s"] for entry in entries],
            "tokens_per_step": entries[0]["tokens_per_step"],
            "communication_s": entries[0].get("communication_s"),
        }
        for job, entries in found.items()
    }


def evaluate(
    plans: dict[str, list[tuple[int, int]]], measured: dict[Job, dict[str, Any]], threads: int, cores: int
) -> list[dict[str, Any]]:
    """Throughput and efficiency of each point, measured and predicted."""
    records = []
    for mode, points in plans.items():
        _, whole = points[0]  # one rank
        base_tokens_per_s = _throughput(measured["hvdkit", 1, whole])
        alone_tokens_per_s = _throughput(measured["local", 1, whole])
        for ranks, batch_size in points:
            job, alone = measured["hvdkit", ranks, batch_size], measured["local", 1, batch_size]
            compute_s = alone["mean_s"] * max(1.0, ranks * threads / cores)
            communication_s = 0.0 if ranks == 1 else job["communication_s"]
            predicted_s = None if communication_s is None else compute_s + communication_s
            tokens = ranks * job["tokens_per_step"]
            records.append({
                "mode": mode, "ranks": ranks, "sequences_per_rank": batch_size, "step_s": job["mean_s"],
                "tokens_per_s": tokens / job["mean_s"], "job_mean_s": job["job_mean_s"],
                "efficiency": tokens / job["mean_s"] / ranks / base_tokens_per_s,
                "compute_s": compute_s, "compute_efficiency": tokens / compute_s / ranks / alone_tokens_per_s,
                "predicted_s": predicted_s,
                "predicted_efficiency": predicted_s and tokens / predicted_s / ranks / alone_tokens_per_s,
            })  # fmt: skip
    return records


def _throughput(one_rank: dict[str, Any]) -> float:
    return float(one_rank["tokens_per_step"] / one_rank["mean_s"])


def print_scaling(records: Sequence[dict[str, Any]], title: str) -> str:
    """The table; the columns of the whole prediction are there where there is one for every point. Returns Markdown."""
    has_prediction = all(record["predicted_s"] is not None for record in records)
    header = ["scaling", "ranks", "sequences per rank", "step ms", "tokens/s", "efficiency", "compute alone ms",
              "efficiency"]  # fmt: skip
    header += ["predicted ms", "efficiency", "measured / predicted"] if has_prediction else []
    rows = []
    for record in records:
        row = [record["mode"], record["ranks"], record["sequences_per_rank"], f"{record['step_s'] * 1e3:.1f}",
               f"{record['tokens_per_s']:.0f}", f"{record['efficiency']:.2f}", f"{record['compute_s'] * 1e3:.1f}",
               f"{record['compute_efficiency']:.2f}"]  # fmt: skip
        if has_prediction:
            row += [f"{record['predicted_s'] * 1e3:.1f}", f"{record['predicted_efficiency']:.2f}",
                    f"{record['step_s'] / record['predicted_s']:.2f}"]  # fmt: skip
        rows.append(row)
    return print_table(f"\n{title}", header, rows)


def _predict(model: nn.Module) -> dict[str, Any]:
    return {"communication_s": predict_communication_s(model) if is_initialized() else None}


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="1 first (default: 1 2 4 8)")
    parser.add_argument("--model", choices=list(SIZES), default="4m", help="default: 4m")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw", help="default: adamw")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences per rank, weak scaling (default: 4)")
    parser.add_argument("--total", type=int, default=8, help="sequences of all ranks, strong scaling (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="per rank (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of each kind (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each job (default: 12)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--rank-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        arm, *words, folder = options.rank_of
        report(Path(folder), measure_steps(arm, StepOptions.from_words(words), Path(folder), _predict))
        return
    end_when_told()
    ranks = sorted(set(options.ranks))
    if ranks[0] != 1 or any(options.total % p for p in ranks):
        parser.error(f"--ranks {ranks} must have 1, and each must divide --total {options.total}")
    step = StepOptions(options.model, options.optimizer, options.threads, options.steps)
    plans = plan(ranks, options.batch_size, options.total)
    points = list(dict.fromkeys(point for mode in plans.values() for point in mode))
    jobs: list[Job] = [("local", 1, size) for size in dict.fromkeys(size for _, size in points)]
    jobs += [("hvdkit", *point) for point in points]
    try:
        measured = measure_in_turn(jobs, step, options.rounds)
    except JobError as error:
        sys.exit(str(error))
    cores = len(usable_cores())
    records = evaluate(plans, measured, options.threads, cores)
    machine = f"{options.threads} thread(s) per rank on {cores} cores"
    sequences = f"sequences of {SIZES[options.model].config.context}"
    part = print_scaling(records, f"training {options.model} with {options.optimizer}, {machine}, {sequences}")
    print_record("scaling", max(ranks), records)
    write_page(options.results, "scaling", "Training on 1 to 8 ranks", [part])
    print(f"picture: {draw_scaling(records, cores / options.threads, options.results / 'scaling.png')}")


if __name__ == "__main__":
    main()
