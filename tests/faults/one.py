import sys, time, shutil, json
from pathlib import Path
from dataclasses import asdict
from tests.faults.plan import *
from tests.faults.case import Trial
from tests.faults.references import References
from tests.faults.verdict import judge

kind, point, rank, step, mode, launcher, ranks, sup = sys.argv[1:9]
faults = (Fault(kind, point, int(rank), int(step)),)
if point == "resume" or kind == "bits flipped":
    faults = (Fault("SIGKILL", "step", int(rank), 11), Fault(kind, point, int(rank), 0, 1))
case = Case(1, faults, mode, launcher, int(ranks), sup == "1", seed=3)
f = Path("/tmp/chaos-try/one")
shutil.rmtree(f, ignore_errors=True)
t = time.time()
seen = Trial(case, f, References(Path("/tmp/chaos-try/refs"))).run()
v = judge(case, seen)
print(
    case.title(),
    v,
    f"{time.time() - t:.0f} s",
    seen.statuses,
    seen.attempts,
    seen.seconds_to_end,
    seen.steps[-1:],
    sep="\n",
)
