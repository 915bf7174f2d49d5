"""`make chaos`: faults in real jobs, drawn by a seed, and a table of what became of the jobs.

    python -m tests.faults.campaign --faults 100 --seed 0 --out runs/chaos

Stopped and started again with the same options it goes on behind the last finished case. The output of cases that
failed stays in the folder. Status 1 if any failed.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.job import print_record
from benchmarks.machine import describe_machine
from hvdkit.errors import CheckpointError
from hvdkit.launch.job import end_when_told
from tests.cluster.hosts import why_not as why_no_hosts
from tests.faults import disk, place
from tests.faults.case import Trial
from tests.faults.modes import HANG_LIMIT_S
from tests.faults.plan import Case, as_json, draw
from tests.faults.references import References
from tests.faults.table import Record, print_tables, write_page
from tests.faults.verdict import DEATH_LIMIT_S, Verdict, judge
from tests.jobs import ROOT


def main() -> int:
    """Run the campaign; returns the status."""
    options = _options()
    place.go_there("tests.faults.campaign", sys.argv[1:])
    end_when_told()
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    cases = _plan(out, options)
    _say_limits()
    numbers = {case.number for case in cases}
    records = [record for record in _finished(out) if record["number"] in numbers]
    references = References(out / "references")
    references.folder.mkdir(exist_ok=True)
    begun = time.monotonic()
    todo = [case for case in cases if case.number not in {record["number"] for record in records}]
    for done, case in enumerate(todo):
        record = _run(case, out, references, options.slack)
        records.append(record)
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        left_s = (time.monotonic() - begun) / (done + 1) * (len(todo) - done - 1)
        print(f"{len(records):3} of {len(cases)}  {record['outcome']:13}  {_figures(record)}  {case.title()}"
              f"  ({record['took_s']:.0f} s, {left_s / 60:.0f} min left)", flush=True)  # fmt: skip
        for problem in record["problems"]:
            print(f"      {problem}", flush=True)
    return _conclude(records, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the plan (default: 0)")
    parser.add_argument("--out", type=Path, default=None, help="folder (default: runs/chaos-FAULTS-SEED)")
    parser.add_argument("--only", metavar="PATTERN", help="only cases whose title has this, such as 'SIGSTOP|gloo'")
    parser.add_argument("--slack", type=float, default=1.0, help="times may be so many times the bars (default: 1)")
    parser.add_argument("--page", type=Path, help="also write the tables there, as Markdown")
    options = parser.parse_args()
    if options.faults < 1 or options.slack < 1:
        parser.error(f"--faults {options.faults} --slack {options.slack}: 1 at least")
    options.out = options.out or ROOT / "runs" / f"chaos-{options.faults}-{options.seed}"
    return options


def _plan(out: Path, options: argparse.Namespace) -> list[Case]:
    cases = draw(options.faults, options.seed, hosts=not why_no_hosts(), disks=not disk.why_not())
    path, text = out / "plan.json", json.dumps(as_json(cases), indent=1)
    if path.exists() and path.read_text() != text:
        sys.exit(f"{out} holds another campaign: name another folder with --out, or delete it")
    path.write_text(text)
    return [case for case in cases if options.only is None or re.search(options.only, case.title())]


def _say_limits() -> None:
    for reason in (why_no_hosts(), disk.why_not()):
        if reason:
            print(f"left out: {reason}", flush=True)
    if not place.is_own():
        print("not in a place of its own (that needs root): shared memory is not looked at", flush=True)


def _finished(out: Path) -> list[Record]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _run(case: Case, out: Path, references: References, slack: float) -> Record:
    folder, begun = out / f"case-{case.number:03d}", time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        verdict = judge(case, Trial(case, folder, references).run(), slack=slack)
    except (RuntimeError, OSError, CheckpointError, subprocess.CalledProcessError) as problem:
        verdict = Verdict("FAILED", [f"{type(problem).__name__}: {problem}"])
    if verdict.outcome != "FAILED":
        shutil.rmtree(folder)
    return {
        "number": case.number, "kind": case.fault.kind, "point": case.fault.point, "mode": case.mode,
        "launcher": case.launcher, "title": case.title(), "outcome": verdict.outcome, "problems": verdict.problems,
        "seconds": verdict.seconds, "steps_repeated": verdict.steps_repeated, "is_equal": verdict.is_equal,
        "took_s": time.monotonic() - begun,
    }  # fmt: skip


def _figures(record: Record) -> str:
    seconds = "   -  " if record["seconds"] is None else f"{record['seconds']:4.1f} s"
    return f"{seconds}  {record['steps_repeated']} steps again"


def _conclude(records: list[Record], options: argparse.Namespace) -> int:
    failed = [record for record in records if record["outcome"] == "FAILED"]
    title = f"{len(records)} faults, seed {options.seed}"
    tables = print_tables(records, title)
    told = [
        f"Bars: the job ends within {DEATH_LIMIT_S:.0f} s of a death and within {DEATH_LIMIT_S:.0f} s of the set time "
        f"({HANG_LIMIT_S} s) where a rank hangs; no step is lost that a complete checkpoint holds; the final "
        "parameters, optimizer state and losses are those of the run that nothing struck, to the bit; no process, file "
        "or shared memory stays behind.",
        f"{len(records) - len(failed)} of {len(records)} met all of them, in "
        f"{sum(record['took_s'] for record in records) / 60:.0f} minutes.",
        *(f"FAILED: {record['title']}: {'; '.join(record['problems'])}" for record in failed),
    ]
    print(*told, sep="\n", flush=True)
    if options.page is not None:
        write_page(options.page, "Faults put into real jobs", "make chaos", tables, told)
    print_record("chaos", sorted({2, 3}), records, describe_machine())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
