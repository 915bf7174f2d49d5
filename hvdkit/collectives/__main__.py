"""`hvdkit collectives`: which algorithm is chosen for which collective and message, why, and whether rightly."""

import argparse
import json
import re
import sys

import torch

from hvdkit.collectives.algorithms import COLLECTIVES, NAMES
from hvdkit.collectives.choice import Choice
from hvdkit.collectives.connect import direct_collectives, why_no_direct
from hvdkit.collectives.direct import DirectCollectives
from hvdkit.collectives.probe import make_calls, time_in_turns
from hvdkit.collectives.report import Report, Row
from hvdkit.runtime import World, end_job_on_error, init

_SIZES = "1K 8K 64K 512K 4M 32M 128M"
_MEASURE_S = 0.5
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def main(argv: list[str] | None = None) -> int:
    """Print the report on rank 0; returns the exit status."""
    options = _parser().parse_args(argv)
    with end_job_on_error():
        world = init()
        if problem := _nothing_to_choose(world):
            if world.is_root:
                print(json.dumps({"ranks": world.size, "problem": problem}) if options.json else problem)
            return 0 if world.size == 1 else 1
        torch.set_num_threads(world.threads)
        report = _report(direct_collectives(world), options)
        if world.is_root:
            print(json.dumps(report.as_json()) if options.json else report.as_text())
    return 0


def _nothing_to_choose(world: World) -> str | None:
    if world.size == 1:
        return (
            "There is one rank, so there is nothing to communicate and no algorithm to choose. Start several, by\n"
            "  hvdkit run -np 2 -- hvdkit collectives\n"
            "or with mpirun or horovodrun in place of `hvdkit run`."
        )
    if why := why_no_direct(world):
        return f"{why[0].upper()}{why[1:]}, so Horovod's engine does all collectives and there is nothing to choose."
    return None


def _report(collectives: DirectCollectives, options: argparse.Namespace) -> Report:
    choice = collectives.algorithms.choose
    assert isinstance(choice, Choice)
    kinds, sizes = dict.fromkeys(options.collective), dict.fromkeys(options.sizes)
    rows = [_row(collectives, choice, kind, nbytes, options.measure) for kind in kinds for nbytes in sizes]
    return Report(choice.parameters, rows, {kind: _absent(collectives, kind) for kind in kinds})


def _row(collectives: DirectCollectives, choice: Choice, kind: str, nbytes: int, is_measured: bool) -> Row:
    predicted = dict(choice.explain(kind, nbytes))
    in_order = {name: predicted[name] for name in NAMES if name in predicted}
    measured = _measure(collectives, kind, nbytes) if is_measured else {}
    return Row(kind, nbytes, choice(kind, nbytes), in_order, measured)


def _measure(collectives: DirectCollectives, kind: str, nbytes: int) -> dict[str, float]:
    """Seconds of every algorithm; Horovod's engine apart, for its threads take cores from the others. Collective."""
    group, algorithms = collectives.group, collectives.algorithms
    names = algorithms.names(kind)
    measured: dict[str, float] = {}
    for turns in ([name for name in names if name != "horovod"], [name for name in names if name == "horovod"]):
        if turns:
            calls = make_calls(group, algorithms, collectives.meeting, kind, turns, nbytes)
            time_in_turns(group, calls, repeats=1)
            round_s = sum(time_in_turns(group, calls, repeats=1).values())
            repeats = group.comm.bcast(max(5, min(100, int(_MEASURE_S / round_s))))
            measured |= time_in_turns(group, calls, repeats)
    return measured


def _absent(collectives: DirectCollectives, kind: str) -> dict[str, str]:
    algorithms = collectives.algorithms
    offering = algorithms.names(kind)
    return {name: algorithms.reasons.get(name, f"it does not offer {kind}") for name in NAMES if name not in offering}


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip().upper())
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no message length; write bytes, as 4096, or 4K, 1M, 1G")
    return int(found[1]) * _UNITS[found[2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hvdkit collectives",
        description="Show which algorithm is chosen for each collective and message length, and the times it is "
        "predicted to take. Run it on several ranks: hvdkit run -np 2 -- hvdkit collectives",
    )
    parser.add_argument("--measure", action="store_true", help="measure every algorithm too, and compare")
    parser.add_argument(
        "--collective", nargs="+", choices=COLLECTIVES, default=COLLECTIVES, metavar="NAME",
        help=f"of {', '.join(COLLECTIVES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=[_size(text) for text in _SIZES.split()], metavar="BYTES",
        help=f"message lengths, of float32 on each rank (default: {_SIZES})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object, times in seconds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
