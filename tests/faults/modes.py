"""How the jobs run that faults strike: options of the training, and launchers."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.plan import CHECKPOINT_EVERY, STEPS, Case
from tests.jobs import LAUNCHERS
from tests.train.runs import as_words, configure, write_text

HANG_LIMIT_S = 8
"""The set time for hangs, in cases that have one."""

HANGS = ("SIGSTOP", "network cut")
_PRECISION = {"sharding 1": "float64", "diloco": "float64", "async": "float64"}
_STRATEGIES = {"plain": "shared_memory", "async": "ring"}
_OPTIONS = {
    "plain": [],
    "sharding 1": ["--sharding", "1"],
    "sharding 3": ["--sharding", "3"],
    "diloco": ["--local", "diloco", "--sync-every", "3"],
    "int8": ["--compression", "int8"],
    "async": ["--checkpoint-async", "true"],
}
_BY_HAND = {"mpirun": "mpirun", "horovodrun": "horovodrun-mpi", "gloo": "horovodrun-gloo"}
_SUPERVISED = {
    "mpirun": ["--launcher", "mpirun"],
    "horovodrun": ["--launcher", "horovodrun"],
    "gloo": ["--gloo"],
}


def training(mode: str, launcher: str, text: Path) -> list[str]:
    """The options of `hvdkit train`, without those that say where.

    The algorithm is named, since a probe may choose another one for the next run, which rounds in another way.
    """
    config = configure(
        write_text(text), Path("unused"), steps=STEPS, checkpoint_every=CHECKPOINT_EVERY, eval_every=0,
        precision=_PRECISION.get(mode, "float32"), keep_best=0,
    )  # fmt: skip
    words = as_words(config)
    place = words.index("--out")
    words[place : place + 2] = []
    strategy = "horovod" if launcher == "gloo" else _STRATEGIES.get(mode, "mpi")
    return [*words, *_OPTIONS[mode], "--strategy", strategy, "--threads", "1"]


def hang_options(case: Case) -> list[str]:
    """The set time, where a rank hangs."""
    return ["--hang-timeout", str(HANG_LIMIT_S)] if case.fault.kind in HANGS else []


def supervised(case: Case, name: str, log: Path, words: Sequence[str], *, again: bool = False) -> list[str]:
    """The command of a job that is restarted; `again` where it was ended and goes on under its name."""
    where = ["-H", "node1:1,node2:1", "--network-interface", "eth0"] if case.two_hosts else []
    return [
        sys.executable, "-m", "hvdkit.launch.run", "-np", str(case.ranks), *_SUPERVISED[case.launcher], *where,
        "--max-restarts", "4", "--backoff", "0.2", "--quick-failure", "0", "--log", str(log),
        "--resume-run" if again else "--run-name", name, "--", sys.executable, *words,
    ]  # fmt: skip


def plain(launcher: str, ranks: int, words: Sequence[str]) -> list[str]:
    """The command of a job that nobody restarts."""
    return [*LAUNCHERS[_BY_HAND[launcher]], "-np", str(ranks), sys.executable, *words]
