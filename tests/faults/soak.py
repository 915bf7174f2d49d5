"""`make soak`: an hour of training with faults and restarts, and whether anything grows.

    python -m tests.faults.soak --minutes 60 --ranks 4

A supervised job trains; every few minutes a rank is killed or stopped, or its launcher is killed. What each rank and
the supervisor use is sampled from outside. In the end the job is told to end, saves, and is looked at.
"""

import argparse
import json
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.job import print_record, print_table
from benchmarks.machine import describe_machine
from hvdkit.checkpoint import find_checkpoint, load_checkpoint
from hvdkit.launch.job import end_when_told
from tests.faults import jobs, place, samples
from tests.faults.deeds import is_launcher
from tests.faults.growth import WARM_UP_S, Growth, growths
from tests.faults.table import write_page
from tests.jobs import ROOT, clean_environ
from tests.train.runs import as_words, configure, write_text

HANG_LIMIT_S = 20
_SAMPLE_S = 5.0
_END_LIMIT_S = 120.0
_KINDS = ("SIGKILL", "SIGSEGV", "SIGSTOP", "SIGKILL launcher")


def main() -> int:
    """Run the soak; returns the status: 1 where something grows, or is left."""
    options = _options()
    place.go_there("tests.faults.soak", sys.argv[1:])
    end_when_told()
    out: Path = options.out.absolute()
    out.mkdir(parents=True)
    (out / "tmp").mkdir()
    mark = f"soak-{secrets.token_hex(3)}"
    job = _start(out, mark, options.ranks)
    try:
        struck = _watch(job, out, mark, options)
        status = _end(job)
    finally:
        jobs.end_processes(mark)
    problems = _look_back(out, mark, status, struck)
    return _conclude(out, problems, struck, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="of training (default: 60)")
    parser.add_argument("--ranks", type=int, default=4, help="(default: 4)")
    parser.add_argument("--fault-every", type=float, default=6, metavar="MINUTES", help="on average (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--out", type=Path, help="folder, must not exist (default: runs/soak-DATE-TIME)")
    parser.add_argument("--page", type=Path, help="also write the tables there, as Markdown")
    options = parser.parse_args()
    options.out = options.out or ROOT / "runs" / f"soak-{time.strftime('%Y%m%d-%H%M%S')}"
    return options


def _start(out: Path, mark: str, ranks: int) -> "subprocess.Popen[bytes]":
    config = configure(
        write_text(out / "text", words=4000), out / "run", steps=10**7, precision="float32", checkpoint_every=50,
        eval_every=200, log_every=50, hang_timeout=HANG_LIMIT_S,
    )  # fmt: skip
    command = [
        sys.executable, "-m", "hvdkit.launch.run", "-np", str(ranks), "--max-restarts", "100000", "--backoff", "0.5",
        "--quick-failure", "0", "--run-name", mark, "--log", str(out / "log.jsonl"), "--",
        sys.executable, "-m", "hvdkit.train", *as_words(config),
    ]  # fmt: skip
    env = {jobs.MARK: mark, "TMPDIR": str(out / "tmp"), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(out / "cache")}
    with (out / "output.txt").open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=clean_environ(env), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip


def _watch(job: "subprocess.Popen[bytes]", out: Path, mark: str, options: argparse.Namespace) -> dict[str, int]:
    """Sample, and strike from time to time, until the time is over; returns how often what struck."""
    choose = random.Random(options.seed)
    begun, struck = time.monotonic(), dict.fromkeys(_KINDS, 0)
    end, last_told = begun + options.minutes * 60, begun

    def pause_s() -> float:
        # Never while the attempt still warms up.
        return max(1.5 * WARM_UP_S, choose.uniform(0.5, 1.5) * options.fault_every * 60)

    next_fault = begun + pause_s()
    while time.monotonic() < end and job.poll() is None:
        time.sleep(_SAMPLE_S)
        found = samples.take(mark, job.pid)
        samples.write(found, out / "samples.jsonl")
        now = time.monotonic()
        if now > next_fault:
            kind = choose.choice(_KINDS)
            if strike(kind, mark, choose):
                struck[kind] += 1
                next_fault = now + pause_s()
        if now - last_told > 60:
            last_told = now
            ranks = [sample for sample in found if sample.rank >= 0]
            own = sum(sample.own_bytes for sample in ranks) / 2**20
            print(f"{(now - begun) / 60:.0f} of {options.minutes:g} min  {sum(struck.values())} faults  {len(ranks)} "
                  f"ranks  {own:.0f} MiB in all", flush=True)  # fmt: skip
    return struck


def strike(kind: str, mark: str, choose: random.Random) -> bool:
    """Do it; False where there was nobody to do it to."""
    ranks = sorted(samples.ranks_of(mark), key=lambda item: item[1])
    if not ranks:
        return False
    process = choose.choice(ranks)[2]
    with suppress(psutil.Error):
        if kind == "SIGKILL launcher":
            next(parent for parent in process.parents() if is_launcher(parent)).kill()
        else:
            process.send_signal(getattr(signal, kind))
        return True
    return False


def _end(job: "subprocess.Popen[bytes]") -> int | None:
    """Tell the job to end; returns its status, None if it did not end."""
    job.send_signal(signal.SIGTERM)
    try:
        return job.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None


def _look_back(out: Path, mark: str, status: int | None, struck: dict[str, int]) -> list[str]:
    problems = [] if status == 75 else [f"the job ended with status {status}, not 75"]
    try:
        load_checkpoint(find_checkpoint(out / "run"))
    except Exception as problem:
        problems.append(f"its last checkpoint: {problem}")
    problems += jobs.wait_for_none(mark)
    problems += [f"{out}/tmp/{name} left" for name in sorted(jobs.entries(out / "tmp"))]
    problems += place.shared_memory_left()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    attempts = sum(line["event"] == "started" for line in lines)
    if attempts != 1 + sum(struck.values()):
        problems.append(f"{attempts} attempts after {sum(struck.values())} faults")
    return problems


def _conclude(out: Path, problems: list[str], struck: dict[str, int], options: argparse.Namespace) -> int:
    found = samples.read(out / "samples.jsonl") if (out / "samples.jsonl").exists() else []
    parts: list[str] = []
    records: list[dict[str, object]] = []
    for who, is_supervisor in ((f"each of {options.ranks} ranks", False), ("the supervisor", True)):
        grown = growths(found, supervisor=is_supervisor)
        title = f"{options.minutes:g} minutes, {sum(struck.values())} faults and restarts: {who}"
        parts.append(print_table(title, ["what", "level", "growth per hour", "+-", "bar", "verdict"], _rows(grown)))
        problems += [f"{who}: {item.bar.name} grows" for item in grown if item.is_too_much]
        records += [
            {"who": who, "what": item.bar.name, "level": item.level, "per_hour": item.per_hour, "error": item.error}
            for item in grown
        ]
    told = [
        f"Slopes over all attempts, without the first {WARM_UP_S:.0f} s of each; +- is the standard error. Faults: "
        + ", ".join(f"{count} {kind}" for kind, count in struck.items()) + ".",
        *(problems or ["Nothing grows, nothing is left, and the last checkpoint is whole."]),
    ]  # fmt: skip
    print(*told, sep="\n", flush=True)
    if options.page is not None:
        write_page(options.page, "An hour of training with faults", "make soak", parts, told)
    print_record("soak", options.ranks, records, describe_machine())
    return 1 if problems else 0


def _rows(grown: list[Growth]) -> list[list[str]]:
    verdict: Callable[[Growth], str] = lambda item: (  # noqa: E731
        "GROWS" if item.is_too_much else "too short" if item.error == float("inf") else "good"
    )
    return [
        [f"{item.bar.name}, {item.bar.unit}", f"{item.level:.1f}", f"{item.per_hour:+.2f}", f"{item.error:.2f}",
         f"{item.bar.per_hour:g}", verdict(item)]
        for item in grown
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
