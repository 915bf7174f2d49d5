"""How fast is hvdkit between two hosts of two ranks, on a 1 Gbit/s and a 100 Mbit/s link?

The hosts are namespaces on this machine (tests/cluster/hosts.py), so all four ranks share its cores: a stock library
whose ranks busy-wait is measured as it comes, and once more told to yield. First an all-reduce by each library and
each of hvdkit's strategies, beside the time that the wire alone needs, 2(h-1)/h x bytes / rate for h hosts; then a
training step. Jobs over hosts cannot be stopped half-way, so each library has jobs of its own; they take turns in
rounds. The time of an all-reduce is the mean of the ranks' times after a barrier.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))


from benchmarks.host_calls import measure_all_reduces
from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import JobError, report, run_job
from benchmarks.step_arms import ARMS, SIZES, StepOptions, measure_steps
from benchmarks.step_picture import draw_hosts
from hvdkit.launch.job import end_when_told
from tests.cluster.hosts import Host, cluster, why_not
from tests.cluster.link import limit_rate, why_no_limit

KIB = 1024
RANKS_PER_HOST = 2
NAMES = ("node1", "node2")
RANKS = RANKS_PER_HOST * len(NAMES)
YIELD = {"OMPI_MCA_mpi_yield_when_idle": "1"}
DEFAULT_STEP_ARMS = ("stock", "ddp", "hvdkit", "hvdkit-powersgd", "hvdkit-int8")


class Library(NamedTuple):
    """Who does an all-reduce: the name in tables, and the environment of its job."""

    label: str
    env: dict[str, str]


LIBRARIES = {
    "stock": Library("stock Horovod", {}),
    "stock-yield": Library("stock Horovod, yielding", YIELD),
    "openmpi": Library("Open MPI", {}),
    "openmpi-yield": Library("Open MPI, yielding", YIELD),
    "gloo": Library("Gloo", {"GLOO_SOCKET_IFNAME": "eth0"}),
    "hvdkit": Library("hvdkit", {}),
    "hvdkit-horovod": Library("hvdkit horovod", {}),
}


def wire_bound_s(nbytes: int, bits_per_s: float) -> float:
    """The least time in which the links carry an all-reduce of `nbytes` between all hosts (Patarasuk, Yuan 2009)."""
    hosts = len(NAMES)
    return 2 * (hosts - 1) / hosts * nbytes * 8 / bits_per_s


def count_repeats(nbytes: int, bits_per_s: float, budget_s: float) -> int:
    """How often a size is measured in one job: as the budget allows, if a call takes thrice the bound; 3 to 20."""
    return max(3, min(20, int(budget_s / (3 * wire_bound_s(nbytes, bits_per_s)))))


def start_on(hosts: Sequence[Host], *words: str) -> list[str]:
    """The command that runs this file with `words` on all ranks of the hosts."""
    return start_on_hosts(hosts, __file__, *words)


def start_on_hosts(hosts: Sequence[Host], *words: str) -> list[str]:
    """The command that runs `python WORDS` on all ranks of the hosts, as a user on the first host starts it."""
    slots = ",".join(f"{host.name}:{RANKS_PER_HOST}" for host in hosts)
    # Open MPI from a wheel must be told where it is on the other host.
    prefix = [f"--mpi-args=--prefix {sys.prefix}"] if (Path(sys.prefix) / "bin" / "orted").exists() else []
    launcher = [
        "horovodrun",
        "--disable-cache",
        "--mpi",
        "-np",
        str(RANKS),
        "-H",
        slots,
        "--network-interface",
        "eth0",
        *prefix,
    ]
    return hosts[0].enter(*launcher, sys.executable, *words)


def compare_all_reduces(
    hosts: Sequence[Host], megabits: int, sizes: Sequence[int], libraries: Sequence[str], rounds: int, budget_s: float
) -> list[dict[str, Any]]:
    """Run the libraries' jobs in turn on links of this speed; returns one record for each algorithm and size."""
    limit_rate(hosts, megabits * 1e6)
    plan = [f"{nbytes}:{count_repeats(nbytes, megabits * 1e6, budget_s)}" for nbytes in sizes]
    times: dict[str, dict[int, list[float]]] = {}
    for number in range(rounds):
        for library in libraries:
            start = time.perf_counter()
            reports = run_job(start_on(hosts, "--reduce", library, *plan), RANKS, env=LIBRARIES[library].env)
            for name, by_size in reports[0]["times"].items():
                for nbytes in by_size:
                    per_rank = [rank["times"][name][nbytes] for rank in reports]
                    means = [statistics.mean(seconds) for seconds in zip(*per_rank, strict=True)]
                    times.setdefault(name, {}).setdefault(int(nbytes), []).extend(means)
            if number == 0:
                for name, reason in reports[0]["left_out"].items():
                    print(f"left out: hvdkit {name}: {reason}")
            print(f"{megabits} Mbit/s, round {number + 1} of {rounds}: {LIBRARIES[library].label} "
                  f"(the job: {time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
    return [
        {
            "megabits_per_s": megabits,
            "bytes": nbytes,
            "algorithm": name,
            "median_s": statistics.median(times[name][nbytes]),
            "mean_s": statistics.mean(times[name][nbytes]),
            "bound_s": wire_bound_s(nbytes, megabits * 1e6),
            "n": len(times[name][nbytes]),
        }
        for nbytes in sizes
        for name in times
    ]


def label(algorithm: str) -> str:
    """An algorithm's name in tables."""
    return LIBRARIES[algorithm].label if algorithm in LIBRARIES else algorithm


def print_all_reduces(records: Sequence[dict[str, Any]]) -> str:
    """The table of one link; returns it as Markdown."""
    rows: list[list[str]] = []
    stock = {record["bytes"]: record["median_s"] for record in records if record["algorithm"] == "stock"}
    for record in records:
        size, bound_s = f"{record['bytes'] / KIB:.0f}", record["bound_s"]
        if not rows or rows[-1][0] != size:
            rows.append([size, "wire bound", f"{bound_s * 1e3:.2f}", "", "1.00", ""])
        ratio = f"{stock[record['bytes']] / record['median_s']:.2f}" if record["bytes"] in stock else "-"
        times = [f"{record[key] * 1e3:.2f}" for key in ("median_s", "mean_s")]
        rows.append([size, label(record["algorithm"]), *times, f"{record['median_s'] / bound_s:.2f}", ratio])
    return print_table(
        f"\nall-reduce of float32, {len(NAMES)} hosts x {RANKS_PER_HOST} ranks, {records[0]['megabits_per_s']} Mbit/s",
        ["KiB", "algorithm", "median ms", "mean ms", "time / bound", "times as fast as stock"],
        rows,
    )


def compare_steps(
    hosts: Sequence[Host], megabits: int, options: StepOptions, arms: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Train by each arm in turn; returns one record for each."""
    limit_rate(hosts, megabits * 1e6)
    means: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in arms:
            start = time.perf_counter()
            env = {"GLOO_SOCKET_IFNAME": "eth0"}
            reports = run_job(start_on(hosts, "--step", arm, *options.words()), RANKS, env=env)
            means[arm].append(statistics.mean(seconds for rank in reports for seconds in rank["step_s"]))
            print(f"{megabits} Mbit/s, training, round {number + 1} of {rounds}: {ARMS[arm].label}: "
                  f"{means[arm][-1] * 1e3:.0f} ms a step (the job: {time.perf_counter() - start:.0f} s)",
                  flush=True)  # fmt: skip
    common = {"megabits_per_s": megabits, "model": options.model, "optimizer": options.optimizer}
    return [{**common, "arm": arm, "mean_s": statistics.mean(jobs), "job_mean_s": jobs} for arm, jobs in means.items()]


def print_steps(records: Sequence[dict[str, Any]]) -> str:
    """The table of the training steps; returns it as Markdown."""
    first = records[0]
    stock = next((record["mean_s"] for record in records if record["arm"] == "stock"), None)
    rows = [
        [
            ARMS[record["arm"]].label,
            f"{record['mean_s'] * 1e3:.0f}",
            f"{min(record['job_mean_s']) * 1e3:.0f} to {max(record['job_mean_s']) * 1e3:.0f}",
            f"{stock / record['mean_s']:.2f}" if stock else "-",
        ]
        for record in records
    ]
    return print_table(
        f"\na training step of {first['model']} ({SIZES[first['model']].batch_size} sequences of "
        f"{SIZES[first['model']].config.context} per rank, 1 thread, {first['optimizer']}), {len(NAMES)} hosts x "
        f"{RANKS_PER_HOST} ranks, {first['megabits_per_s']} Mbit/s",
        ["arm", "step ms (mean)", "jobs' means, ms", "times as fast as stock"],
        rows,
    )


def main() -> None:
    """Make the hosts and start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabits", type=int, nargs="+", default=[1000, 100], help="speeds of the link, Mbit/s "
                        "(default: 1000 100); training takes the first")  # fmt: skip
    parser.add_argument("--kib", type=int, nargs="*", default=[64, KIB, 8 * KIB, 32 * KIB], help="message sizes, KiB "
                        "(default: 64 1024 8192 32768); none to leave the all-reduce out")  # fmt: skip
    parser.add_argument("--libraries", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(DEFAULT_STEP_ARMS), help="of the "
                        "training step; none to leave it out")  # fmt: skip
    parser.add_argument("--model", choices=list(SIZES), default="33m", help="default: 33m")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of each library and arm (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="timed training steps of each job (default: 12)")
    parser.add_argument("--budget", type=float, default=8, help="seconds for an algorithm and size in one job, about; "
                        "at least 3 repeats (default: 8)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--reduce", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reduce:
        library, *plan, folder = options.reduce
        pairs = [(int(nbytes), int(repeats)) for nbytes, repeats in (entry.split(":") for entry in plan)]
        report(Path(folder), measure_all_reduces(library, pairs, Path(folder)))
        return
    if options.step:
        arm, *words, folder = options.step
        report(Path(folder), measure_steps(arm, StepOptions.from_words(words), Path(folder)))
        return
    reason = why_not() or why_no_limit()
    if reason:
        print(f"skipped: {reason}")
        return
    end_when_told()
    # The hosts' launchers find programs where this one does.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folder = Path(tempfile.mkdtemp(prefix="hvdkit-hosts-"))
    try:
        with cluster(folder, list(NAMES)) as hosts:
            records = _measure_on(hosts, options)
    except JobError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"picture: {draw_hosts(*records, label, options.results / 'hosts.png')}")


def _measure_on(hosts: Sequence[Host], options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    reduces, parts = [], []
    for megabits in options.megabits if options.kib else ():
        sizes = [kib * KIB for kib in options.kib]
        reduces += compare_all_reduces(hosts, megabits, sizes, options.libraries, options.rounds, options.budget)
        parts.append(print_all_reduces([record for record in reduces if record["megabits_per_s"] == megabits]))
    steps = []
    if options.arms:
        step = StepOptions(options.model, "sgd", threads=1, steps=options.steps, warmup=2)
        steps = compare_steps(hosts, options.megabits[0], step, options.arms, options.rounds)
        if steps:
            parts.append(print_steps(steps))
    write_page(options.results, "hosts", f"{len(NAMES)} hosts of {RANKS_PER_HOST} ranks", parts)
    print_record("hosts", RANKS, {"all_reduce": reduces, "step": steps})
    return reduces, steps


if __name__ == "__main__":
    main()
