"""Jobs of training arms that take turns of a few steps on one machine; see `benchmarks/turns.py`.

Arms that are compared must run close together in time, and an arm without any library must be told when it is its turn
too: rank 0 reads the commands, and passes them on through files in a folder that the job's ranks share.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.job import launch_environment
from benchmarks.measured_job import put
from benchmarks.peers import AS_HOROVODRUN
from benchmarks.step_arms import StepOptions, read_pss_bytes, read_resident_peak_bytes, start_training
from benchmarks.turns import MARK, Job
from hvdkit.models.language_model import count_parameters
from hvdkit.runtime.launcher import launch_info

_LOOK_S = 0.001


def start_job(arm: str, options: StepOptions, ranks: int, script: str, folder: Path) -> Job:
    """Start `python SCRIPT --rank-of ARM OPTIONS FOLDER` on `ranks` ranks, each of which calls `take_turns`."""
    words = [sys.executable, script, "--rank-of", arm, *options.words(), str(folder)]
    return Job(arm, ["mpirun", *AS_HOROVODRUN, "-np", str(ranks), *words], launch_environment({}))


def take_turns(arm: str, options: StepOptions, folder: Path) -> None:
    """Train on this rank whenever it is this job's turn, until its input ends.

    A turn is a step that does not count, for caches and cores to be this job's again, and `options.steps` that do. Rank
    0 answers with what every rank measured: step times (s), the loss of the last step, and peak memory (bytes), read
    with the gradients still there: PSS, which counts a page that k processes map 1/k in each, and the kernel's own peak
    of resident memory (VmHWM), which counts it whole.
    """
    place = launch_info()
    training = start_training(arm, options, folder)
    for _ in range(options.warmup):
        training.step()
    hello = {"pid": os.getpid(), "parameters": count_parameters(training.model), "tokens": training.tokens_per_step}
    put(folder / f"hello.{place.rank}.json", hello)
    if place.rank == 0:
        hellos = _gather(folder, "hello", place.size)
        _answer({**hello, "pids": [one["pid"] for one in hellos], "contenders": [arm]})
    number = 0
    while _is_next_turn(folder, number, reads=place.rank == 0):
        training.step()
        step_s = []
        for _ in range(options.steps):
            start = time.perf_counter()
            loss = training.step()
            step_s.append(time.perf_counter() - start)
        memory = {"pss_bytes": read_pss_bytes(), "resident_peak_bytes": read_resident_peak_bytes()}
        put(folder / f"{number}.{place.rank}.json", {"step_s": step_s, "loss": loss, **memory})
        while arm == "local" and not _are_all_there(folder, str(number), place.size):
            training.step()  # the others are still being timed
        if place.rank == 0:
            _answer({"answer": _gather(folder, str(number), place.size)})
        number += 1
    training.close()


def _is_next_turn(folder: Path, number: int, *, reads: bool) -> bool:
    """Wait for the command of turn `number`; False if there is none any more."""
    path = folder / f"turn.{number}.json"
    if reads:
        put(path, bool(sys.stdin.readline()))
    while not path.exists():
        time.sleep(_LOOK_S)
    return bool(json.loads(path.read_text()))


def _paths(folder: Path, word: str, size: int) -> Sequence[Path]:
    return [folder / f"{word}.{rank}.json" for rank in range(size)]


def _are_all_there(folder: Path, word: str, size: int) -> bool:
    return all(path.exists() for path in _paths(folder, word, size))


def _gather(folder: Path, word: str, size: int) -> list[Any]:
    while not _are_all_there(folder, word, size):
        time.sleep(_LOOK_S)
    return [json.loads(path.read_text()) for path in _paths(folder, word, size)]


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()
