"""How long does a training step wait for communication: hvdkit beside stock Horovod and PyTorch's DDP?

Every arm trains the same GPT on the same batches, with the same threads per rank. The arms are jobs of their own, which
take turns of a few steps in rounds; those whose turn it is not are stopped. `local only` runs as many ranks at once
without any communication, and no library started; what a step takes longer than that, in the same round, is its exposed
communication. Peak memory is the largest of the ranks'.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import JobError
from benchmarks.step_arms import ARMS, OPTIMIZERS, SIZES, StepOptions
from benchmarks.step_picture import draw_steps
from benchmarks.step_turns import start_job, take_turns
from benchmarks.turns import JobFailedError, running
from hvdkit.models.gpt import GPT
from hvdkit.models.language_model import count_parameters
from hvdkit.runtime.world import usable_cores

DEFAULT_ARMS = ("local", "stock", "stock-groups", "ddp", "hvdkit")
MEBIBYTE = 1024**2
PROCESS_BYTES = 500 * MEBIBYTE
"""Of a rank, beside its model."""
START_LIMIT_S, TURN_LIMIT_S = 300, 300
# Same weights, same tokens, same sums of gradients: the arms differ by rounding only.
LOSS_TOLERANCE = 3e-4


def compare(
    ranks: int, options: StepOptions, arms: Sequence[str], rounds: int, script: str = __file__
) -> list[dict[str, Any]]:
    """Let the arms take turns; returns one record for each, with one entry for each round. Raises JobFailedError."""
    turns: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder, running() as jobs:
        for arm in arms:  # one after another: its first steps are warm and quick when nobody else runs
            place = Path(folder) / arm
            place.mkdir()
            jobs.append(start_job(arm, options, ranks, script, place))
            jobs[-1].wait_until_ready(START_LIMIT_S)
        hello = jobs[0].hello
        for number in range(rounds):
            first = number % len(arms)
            for arm, job in [*zip(arms, jobs, strict=True)][first:] + [*zip(arms, jobs, strict=True)][:first]:
                with job.turn():
                    turns[arm].append(job.ask({"do": "turn"}, TURN_LIMIT_S)["answer"])
            means = ", ".join(f"{ARMS[arm].label} {_mean_step(turns[arm][-1]) * 1e3:.0f}" for arm in arms)
            print(f"{ranks} ranks, {options.model}, {options.optimizer}, round {number + 1} of {rounds}, ms a step: "
                  f"{means}", file=sys.stderr, flush=True)  # fmt: skip
    records = [_summarise(ranks, options, hello, arm, reports) for arm, reports in turns.items()]
    local = next((record for record in records if record["arm"] == "local"), None)
    for record in records:
        record["exposed_s"] = local and [
            mean - alone for mean, alone in zip(record["round_mean_s"], local["round_mean_s"], strict=True)
        ]
    _check_losses(records, options)
    return records


def fitting(arms: Sequence[str], ranks: int, options: StepOptions) -> list[str]:
    """`arms`, all of which are in memory at once, without those of the least interest where there is too little."""
    states = {"sgd": 2, "adamw": 4}[options.optimizer]  # parameters, gradients, what the optimizer keeps
    with torch.device("meta"):
        nbytes = 4 * states * count_parameters(GPT(SIZES[options.model].config))
    room = int(0.9 * psutil.virtual_memory().available / ranks / (nbytes + PROCESS_BYTES))
    kept = [arm for arm in arms if arm != "stock-groups"] if room < len(arms) else [*arms]
    for arm in set(arms) - set(kept):
        print(f"left out: {ARMS[arm].label}: there is memory for {room} jobs of {options.model} at once", flush=True)
    return kept


def _mean_step(reports: list[dict[str, Any]]) -> float:
    return statistics.mean(seconds for rank in reports for seconds in rank["step_s"])


def _summarise(
    ranks: int, options: StepOptions, hello: dict[str, Any], arm: str, turns: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    step_s = [seconds for reports in turns for rank in reports for seconds in rank["step_s"]]
    return {
        "arm": arm,
        "ranks": ranks,
        "model": options.model,
        "parameters": hello["parameters"],
        "tokens_per_rank": hello["tokens"],
        "optimizer": options.optimizer,
        "threads": options.threads,
        "mean_s": statistics.mean(step_s),
        "median_s": statistics.median(step_s),
        "round_mean_s": [_mean_step(reports) for reports in turns],
        "pss_peak_bytes": max(rank["pss_bytes"] for reports in turns for rank in reports),
        "resident_peak_bytes": max(rank["resident_peak_bytes"] for reports in turns for rank in reports),
        "losses": [statistics.mean(rank["loss"] for rank in reports) for reports in turns],
    }


def _check_losses(records: list[dict[str, Any]], options: StepOptions) -> None:
    """All arms that aggregate without loss must have trained the same model."""
    losses = {record["arm"]: record["losses"] for record in records if ARMS[record["arm"]].is_exact}
    rounds = [*zip(*losses.values(), strict=True)]
    if any(max(found) - min(found) > LOSS_TOLERANCE * max(found) for found in rounds):
        raise JobError(f"the arms did not train the same {options.model}: losses at the last timed step {losses}")


def print_comparison(records: list[dict[str, Any]]) -> str:
    """The table of one model, optimizer and number of ranks; returns it as Markdown."""
    first = records[0]
    exposed = {record["arm"]: statistics.mean(record["exposed_s"]) for record in records if record["exposed_s"]}
    rows = [
        [
            ARMS[record["arm"]].label,
            f"{record['mean_s'] * 1e3:.1f}",
            f"{record['median_s'] * 1e3:.1f}",
            f"{min(record['round_mean_s']) * 1e3:.1f} to {max(record['round_mean_s']) * 1e3:.1f}",
            f"{exposed[record['arm']] * 1e3:.1f}" if record["arm"] in exposed else "-",
            f"{exposed[record['arm']] / exposed['stock']:.2f}" if exposed.get("stock", 0) > 0 else "-",
            f"{record['pss_peak_bytes'] / MEBIBYTE:.0f}",
            f"{record['resident_peak_bytes'] / MEBIBYTE:.0f}",
        ]
        for record in records
    ]
    header = ["arm", "step ms (mean)", "median ms", "rounds' means, ms", "exposed ms", "of stock's", "peak PSS MiB",
              "VmHWM MiB"]  # fmt: skip
    machine = f"{first['ranks']} ranks x {first['threads']} threads on {len(usable_cores())} cores"
    model = f"GPT of {first['parameters'] / 1e6:.1f}M parameters ({first['model']}), {first['optimizer']}"
    tokens = f"{first['tokens_per_rank']} tokens per rank in sequences of {SIZES[first['model']].config.context}"
    return print_table(f"\na training step, {machine}: {model}, {tokens}", header, rows)


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), help="default: 4m, and 33m 132m where each rank "
                        "has a core")  # fmt: skip
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT_ARMS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8], help="one comparison each (default: 2 8)")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each arm (default: 6)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each turn (default: 4)")
    parser.add_argument("--threads", type=int, default=0, help="per rank (default: cores / ranks, at least 1)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--rank-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        arm, *words, folder = options.rank_of
        take_turns(arm, StepOptions.from_words(words), Path(folder))
        return
    everything, parts = [], []
    cores = len(usable_cores())
    for ranks in options.ranks:
        comparisons = []
        for model in options.models or (["4m", "33m", "132m"] if ranks <= cores else ["4m"]):
            for optimizer in options.optimizers:
                threads = options.threads or max(1, cores // ranks)
                step = StepOptions(model, optimizer, threads, options.steps)
                try:
                    arms = fitting(options.arms, ranks, step)
                    comparisons.append(compare(ranks, step, arms, options.rounds))
                except (JobError, JobFailedError) as error:
                    sys.exit(str(error))
                parts.append(print_comparison(comparisons[-1]))
        print_record("step", ranks, [record for records in comparisons for record in records])
        everything += comparisons
    write_page(options.results, "step", "A training step", parts)
    print(f"picture: {draw_steps(everything, options.results / 'step.png')}")


if __name__ == "__main__":
    main()
