"""A training job that writes down what reduced its gradients; run by `test_algorithms.py`.

    python resumed.py REPORT OPTION ...

REPORT gets the algorithms of all all-reduces, the parameters they were chosen by, and those in the run's checkpoint.
"""

import json
import sys
from pathlib import Path

import hvdkit as hvd
from hvdkit.checkpoint import load_checkpoint
from hvdkit.collectives import direct_collectives, saved_choice
from hvdkit.collectives.algorithms import Algorithms
from hvdkit.train.__main__ import read_configuration
from hvdkit.train.job import Job

report, *words = sys.argv[1:]
world = hvd.init()
job = Job(world, read_configuration(words))
algorithms: Algorithms = direct_collectives(world).algorithms
choose = algorithms.choose
used = set()


def noted(collective: str, nbytes: int) -> str:
    name = choose(collective, nbytes)
    if collective == "all_reduce":
        used.add(name)
    return name


algorithms.choose = noted
job.loop.run(lambda progress: None, lambda step: None)
algorithms.choose = choose
saved_again = load_checkpoint(job.save()).common()["collectives"]
if world.is_root:
    found = {"used": sorted(used), "parameters": saved_choice(world), "saved_again": saved_again}
    Path(report).write_text(json.dumps(found), encoding="utf-8")
