"""How close do local updates come to synchronous training, with how many bytes, and what do they save on a slow link?

First on one machine: the same model on the default corpus with equal tokens, synchronously, by DiLoCo and Local SGD
with fixed rounds, by DiLoCo with adaptive rounds, and, as a control, by one worker with the same outer optimizer and
the same global batch. Then between two hosts on a slow link, where seconds of training until a validation loss is
reached are compared; DiLoCo is given more steps there, since it needs more of them.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_hosts import NAMES, RANKS, start_on_hosts
from benchmarks.job import print_record, print_table, write_page
from benchmarks.local_picture import draw_local
from benchmarks.measured_job import JobError, run_to_end
from benchmarks.watched_training import start_train
from hvdkit.launch.job import end_when_told
from hvdkit.train.metrics import read_metrics
from tests.cluster.hosts import cluster, why_not
from tests.cluster.link import limit_rate, why_no_limit

SYNCHRONOUS, CONTROL = "synchronous", "one worker, DiLoCo 50"
ARMS: dict[str, list[str]] = {
    SYNCHRONOUS: [],
    "DiLoCo 50": ["--local", "diloco", "--sync-every", "50"],
    "DiLoCo 50, int8": ["--local", "diloco", "--sync-every", "50", "--outer-compression", "int8"],
    "DiLoCo adaptive": ["--local", "diloco", "--sync-every", "adaptive"],
    "Local SGD 50": ["--local", "sgd", "--sync-every", "50"],
    CONTROL: ["--local", "diloco", "--sync-every", "50"],
}


def train(command: Sequence[str], out: Path) -> dict[str, Any]:
    """Run `command`, which trains into `out`; its validation losses over steps and seconds, and what rank 0 sent."""
    status, printed = run_to_end(list(command), timeout_s=3600)
    if status:
        raise JobError(f"status {status}: {' '.join(command)}\n{printed}")
    lines = read_metrics(out)
    losses = [(line["step"], line["seconds"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    every = [line["step"] for line in lines if "bytes_per_step" in line]
    since = [step - before for step, before in zip(every, [0, *every], strict=False)]
    sent = [line["bytes_per_step"] for line in lines if "bytes_per_step" in line]
    total = sum(each * steps for each, steps in zip(sent, since, strict=True))
    return {"losses": losses, "bytes_sent": total, "seconds": losses[-1][1]}


def words_of(options: argparse.Namespace, model: str, steps: int, batch_size: int, more: Sequence[str]) -> list[str]:
    """Options of `hvdkit.train`."""
    return ["--model", model, "--steps", str(steps), "--batch-size", str(batch_size), "--warmup-steps",
            str(max(1, steps // 20)), "--eval-every", str(max(1, steps // options.evaluations)), "--eval-batches",
            str(options.eval_batches), "--log-every", str(max(1, steps // 40)), "--checkpoint-every", "0",
            "--sample-tokens", "0", "--seed", str(options.seed), *more]  # fmt: skip


def compare_here(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All arms on this machine."""
    records = []
    for arm in options.arms:
        ranks = 1 if arm == CONTROL else options.ranks
        out = folder / arm.replace(" ", "-").replace(",", "")
        batch = options.batch_size * options.ranks // ranks
        words = words_of(options, options.model, options.steps, batch, [*ARMS[arm], "--out", str(out)])
        records.append({"arm": arm, "hosts": 1, "ranks": ranks, **train(start_train(ranks, words), out)})
        print(f"{arm}: validation loss {records[-1]['losses'][-1][2]:.4f}", flush=True)
    return records


def compare_on_hosts(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Synchronous training and DiLoCo between two hosts on a slow link."""
    records = []
    with cluster(folder, list(NAMES)) as hosts:
        limit_rate(hosts, options.megabits * 1e6)
        for arm, steps in ((SYNCHRONOUS, options.host_steps), ("DiLoCo 50", round(options.host_steps * options.more))):
            out = folder / f"hosts-{arm.replace(' ', '-')}"
            more = [*ARMS[arm], *(["--local-level", options.level] if ARMS[arm] else []), "--out", str(out)]
            words = words_of(options, options.host_model, steps, options.host_batch_size, more)
            found = train(start_on_hosts(hosts, "-m", "hvdkit.train", *words), out)
            records.append({"arm": arm, "hosts": 2, "ranks": RANKS, **found})
            print(f"two hosts, {arm}: {found['losses'][-1][2]:.4f} after {found['seconds']:.0f} s", flush=True)
    return records


def seconds_to(losses: Sequence[tuple[int, float, float]], loss: float) -> float | None:
    """Seconds of training until the validation loss was at most `loss`; None if it never was."""
    return next((seconds for _, seconds, reached in losses if reached <= loss), None)


def table_here(records: Sequence[dict[str, Any]], title: str) -> str:
    """Losses and bytes against synchronous training; prints it and returns it as Markdown."""
    whole = records[0]
    rows = [
        [record["arm"], f"{record['losses'][-1][2]:.4f}",
         f"{(record['losses'][-1][2] / whole['losses'][-1][2] - 1) * 100:+.1f}%", f"{record['bytes_sent'] / 1e6:,.2f}",
         f"1/{whole['bytes_sent'] / record['bytes_sent']:.1f}" if record["bytes_sent"] else "none",
         f"{record['seconds']:.0f}"]
        for record in records
    ]  # fmt: skip
    header = ["", "validation loss, nats/byte", "against synchronous", "MB sent per rank", "of its bytes", "seconds"]
    return print_table(f"\n{title}", header, rows)


def table_hosts(records: Sequence[dict[str, Any]], title: str) -> str:
    """Seconds until the losses on the way of synchronous training, on the same part of the held-out text.

    The last evaluation, after the last step, is on all of it, and so is none of these.
    """
    whole, local = records
    rows = []
    for step, seconds, loss in whole["losses"][1:-1]:
        needed = seconds_to(local["losses"], loss)
        rows.append([f"{loss:.4f}", step, f"{seconds:.0f}", "-" if needed is None else f"{needed:.0f}",
                     "-" if not needed else f"{seconds / needed:.1f}"])  # fmt: skip
    header = ["validation loss", "synchronous steps", "seconds", "DiLoCo seconds", "times as fast"]
    return print_table(f"\n{title}", header, rows)


def main() -> None:
    """Train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4, help="on one machine (default: 4)")
    parser.add_argument("--model", default="gpt-toy", help="default: gpt-toy")
    parser.add_argument("--steps", type=int, default=2000, help="of every arm on one machine (default: 2000)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per rank (default: 8)")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS, help="synchronous first; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=10, help="of each run (default: 10)")
    parser.add_argument("--eval-batches", type=int, default=100, help="of each evaluation but the last (default: 100)")
    parser.add_argument("--megabits", type=int, default=100, help="link between the hosts; 0 for no hosts")
    parser.add_argument("--host-model", default="gpt-4m", help="between hosts (default: gpt-4m)")
    parser.add_argument("--host-steps", type=int, default=300, help="of synchronous training (default: 300)")
    parser.add_argument("--host-batch-size", type=int, default=2, help="sequences per rank (default: 2)")
    parser.add_argument("--more", type=float, default=1.5, help="times as many steps for DiLoCo (default: 1.5)")
    parser.add_argument("--level", default="all", choices=["all", "nodes"], help="who trains alone (default: all)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the page")
    options = parser.parse_args()
    end_when_told()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folder = Path(tempfile.mkdtemp(prefix="hvdkit-local-"))
    here: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    parts = []
    try:
        if options.arms:
            here = compare_here(options, folder)
            batch = options.batch_size * options.ranks
            title = f"{options.model}, {options.steps} steps of {batch} sequences, {options.ranks} ranks"
            parts.append(table_here(here, title))
        if options.megabits and (why := why_not() or why_no_limit()):
            print(f"no hosts: {why}")
        elif options.megabits:
            apart = compare_on_hosts(options, folder)
            title = f"{options.host_model}, two hosts of two ranks joined by {options.megabits} Mbit/s"
            parts.append(table_hosts(apart, title))
    except JobError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_record("local", [options.ranks], [*here, *apart])
    write_page(options.results, "local", "Local updates against synchronous training", parts)
    print(f"picture: {draw_local(here, apart, options.results / 'local.png')}")


if __name__ == "__main__":
    main()
