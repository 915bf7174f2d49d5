"""How right is `hvdkit plan`: what it says of memory and time at each sharding stage, beside what `hvdkit train` takes?

For each number of ranks one plan, then for each stage two runs of `hvdkit train` with the plan's options: one whose
ranks' memory is watched from outside (the largest proportional set size of any rank in training), one that is timed
(its own mean step). Time is also compared between two hosts, as in `bench_hosts.py`, where root and namespaces are
there; the plan is then made on those ranks, under the launcher.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_hosts import NAMES, RANKS, start_on_hosts
from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import JobError, run_to_end
from benchmarks.plan_picture import draw_plans
from benchmarks.watched_training import measure_peak_bytes, measure_step_s, start_train
from hvdkit.launch.job import end_when_told
from tests.cluster.hosts import Host, cluster, why_not
from tests.cluster.link import limit_rate, why_no_limit

DATA = str(Path(__file__).parents[1] / "hvdkit" / "train")
STAGES = (0, 1, 2, 3)
_MEMORY_STEPS = 4
MEBIBYTE = 2**20


def options_of_run(options: argparse.Namespace) -> list[str]:
    """The options of `hvdkit train` that the plan and the runs share."""
    size = ["--model", options.model, "--context", str(options.context), "--batch-size", str(options.batch_size)]
    return ["--data", DATA, *size, "--eval-every", "0", "--checkpoint-every", "0", "--sample-tokens", "0"]


def read_plan(command: Sequence[str]) -> dict[str, Any]:
    """What `hvdkit plan --json` printed, through whatever launcher: Open MPI cuts long lines and tags each piece."""
    status, printed = run_to_end(list(command))
    whole = re.sub(r"\n?\[1,0\]<stdout>:", "", printed)
    begin = whole.find('{"footprint"')
    if status or begin < 0:
        raise JobError(f"status {status}: {' '.join(command)}\n{printed}")
    found: dict[str, Any] = json.JSONDecoder().raw_decode(whole[begin:])[0]
    return found


def compare_here(ranks: int, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Plan and runs on this machine."""
    words = options_of_run(options)
    records = []
    plans = []
    for round_ in range(options.rounds):
        plan = read_plan([sys.executable, "-m", "hvdkit.plan", "--json", "--ranks", str(ranks), *words])
        plans.append(plan)
        for stage in STAGES:
            out = folder / f"{ranks}-{stage}-{round_}"
            common = [*words, "--sharding", str(stage), "--out"]
            step_s = measure_step_s(start_train(ranks, [*common, f"{out}-time", "--steps", str(options.steps)]))
            peaks = []
            if round_ == 0:
                run = start_train(ranks, [*common, f"{out}-memory", "--steps", str(_MEMORY_STEPS), "--log-every", "1"])
                peaks = measure_peak_bytes(run, ranks, _MEMORY_STEPS)
            records.append({"hosts": 1, "ranks": ranks, "stage": stage, "step_s": step_s, "peak_bytes": peaks,
                            "planned_s": plan["stages"][stage]["step_s"],
                            "planned_bytes": plan["stages"][stage]["peak_bytes"]})  # fmt: skip
            shutil.rmtree(f"{out}-time", ignore_errors=True)
            shutil.rmtree(f"{out}-memory", ignore_errors=True)
            print(f"{ranks} ranks, stage {stage}, round {round_ + 1}: {_said(records[-1])}", flush=True)
    return _joined(records)


def compare_on_hosts(hosts: Sequence[Host], options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Plan and timed runs between two hosts."""
    words = options_of_run(options)
    limit_rate(hosts, options.megabits * 1e6)
    records = []
    for round_ in range(options.rounds):
        plan = read_plan(start_on_hosts(hosts, "-m", "hvdkit.plan", "--json", *words))
        for stage in STAGES:
            out = str(folder / f"hosts-{stage}-{round_}")
            run = ["--sharding", str(stage), "--out", out, "--steps", str(options.steps)]
            step_s = measure_step_s(start_on_hosts(hosts, "-m", "hvdkit.train", *words, *run))
            records.append({"hosts": len(NAMES), "ranks": RANKS, "stage": stage, "step_s": step_s, "peak_bytes": [],
                            "planned_s": plan["stages"][stage]["step_s"],
                            "planned_bytes": plan["stages"][stage]["peak_bytes"]})  # fmt: skip
            shutil.rmtree(out, ignore_errors=True)
            print(f"{len(NAMES)} hosts, stage {stage}, round {round_ + 1}: {_said(records[-1])}", flush=True)
    return _joined(records)


def _said(record: dict[str, Any]) -> str:
    said = f"{record['step_s'] * 1e3:.0f} ms, {record['planned_s'] * 1e3:.0f} planned"
    if record["peak_bytes"]:
        planned = f"{record['planned_bytes'] / MEBIBYTE:.0f} planned"
        said += f"; {max(record['peak_bytes']) / MEBIBYTE:.0f} MiB, {planned}"
    return said


def _joined(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each stage: the median over rounds of times and of their ratio."""
    joined = []
    for stage in STAGES:
        rounds = [record for record in records if record["stage"] == stage]
        joined.append({
            **rounds[0],
            "step_s": statistics.median(record["step_s"] for record in rounds),
            "planned_s": statistics.median(record["planned_s"] for record in rounds),
            "time_ratio": statistics.median(record["planned_s"] / record["step_s"] for record in rounds),
        })  # fmt: skip
    return joined


def table(records: Sequence[dict[str, Any]], title: str) -> str:
    """Prints it; returns it as Markdown."""
    header = ["hosts", "ranks", "stage", "planned MiB", "measured MiB", "planned / measured", "planned ms",
              "measured ms", "planned / measured (median)"]  # fmt: skip
    rows = []
    for record in records:
        planned, peaks = record["planned_bytes"], record["peak_bytes"]
        memory = [f"{planned / MEBIBYTE:.0f}", "-", "-"]
        if peaks:
            memory[1:] = [f"{max(peaks) / MEBIBYTE:.0f}", f"{planned / max(peaks):.2f}"]
        times = [f"{record['planned_s'] * 1e3:.0f}", f"{record['step_s'] * 1e3:.0f}", f"{record['time_ratio']:.2f}"]
        rows.append([record["hosts"], record["ranks"], record["stage"], *memory, *times])
    return print_table(f"\n{title}", header, rows)


def main() -> None:
    """Plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt-33m", help="default: gpt-33m")
    parser.add_argument("--context", type=int, default=128, help="tokens per sequence (default: 128)")
    parser.add_argument("--batch-size", type=int, default=2, help="sequences per rank (default: 2)")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--megabits", type=int, default=1000, help="link between two hosts, Mbit/s; 0 for none")
    parser.add_argument("--steps", type=int, default=12, help="of each timed run (default: 12)")
    parser.add_argument("--rounds", type=int, default=2, help="plans and timed runs of each kind (default: 2)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    options = parser.parse_args()
    end_when_told()
    folder = Path(tempfile.mkdtemp(prefix="hvdkit-plan-"))
    records: list[dict[str, Any]] = []
    try:
        for ranks in options.ranks:
            records += compare_here(ranks, options, folder)
        if options.megabits and (why := why_not() or why_no_limit()):
            print(f"no hosts: {why}")
        elif options.megabits:
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            with cluster(folder, list(NAMES)) as hosts:
                records += compare_on_hosts(hosts, options, folder)
    except JobError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    title = f"{options.model}, {options.batch_size} sequences of {options.context} per rank, AdamW"
    part = table(records, f"planned and measured: {title}, hosts joined by {options.megabits} Mbit/s")
    print_record("plan", options.ranks, records)
    write_page(options.results, "plan", "What `hvdkit plan` says, and what is measured", [part])
    print(f"picture: {draw_plans(records, title, options.results / 'plan.png')}")


if __name__ == "__main__":
    main()
