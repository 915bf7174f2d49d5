"""One rank is slower than the others: what does each all-reduce add to the delay?

A round is work, then an all-reduce of all ranks. The work is a fixed number of small matrix products, calibrated once
on rank 0 while the others sleep; the slow rank does FACTOR times as many. The strategies take turns, each with even
ranks, with the first and with the last rank slow, since a tree has a root and a chain an end. One arm only works and
sleeps, and so shows what the straggler costs by itself on these cores:

    own delay   = round with a straggler - even round, both without communication
    added delay = round with a straggler - even round, both with this all-reduce, minus the own delay

Above 0 the all-reduce makes the delay worse, below 0 it hides some of it behind communication that went on meanwhile.
A round lasts from the moment that the first rank leaves a barrier until the last has the sum (one machine, one clock).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import JobError, on_this_machine, report, run_job
from benchmarks.step_picture import draw_stragglers
from hvdkit.launch.job import end_when_told
from hvdkit.runtime.world import usable_cores

KIB = 1024
STRATEGIES = ("ring", "tree", "shared_memory", "hierarchical", "mpi", "horovod")
ALONE = "no communication"
SITUATIONS = ("even", "first slow", "last slow")
_SIDE = 128


def measure(factor: float, work_ms: float, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Run on every rank: its start and end (s) of every round, by size, arm and situation."""
    import hvdkit as hvd
    from benchmarks.strategy_calls import usable_strategies

    torch.set_num_threads(1)
    world = hvd.init()
    comm = world.comm
    assert comm is not None, "this benchmark needs MPI"
    usable, left_out = usable_strategies(STRATEGIES)
    arms: dict[str, Callable[[torch.Tensor], object]] = {ALONE: lambda data: None, **usable}
    products = _calibrate(work_ms) if world.is_root else 0
    _meet_asleep(comm)
    products = comm.bcast(products)
    slow = {"even": -1, "first slow": 0, "last slow": world.size - 1}
    spans: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for nbytes in sizes:
        data = torch.ones(nbytes // 4)
        spans[str(nbytes)] = {arm: {situation: [] for situation in SITUATIONS} for arm in arms}
        for number in range(-1, rounds):  # one to warm up
            for situation in SITUATIONS:
                count = round(products * (factor if slow[situation] == world.rank else 1))
                for arm, call in arms.items():
                    data.fill_(world.rank)
                    comm.Barrier()
                    start = time.perf_counter()
                    _work(count)
                    call(data)
                    end = time.perf_counter()
                    _meet_asleep(comm)
                    if arm != ALONE and not bool((data == world.size * (world.size - 1) / 2).all()):
                        raise ArithmeticError(f"{arm}: wrong sum of {nbytes} bytes")
                    if number >= 0:
                        spans[str(nbytes)][arm][situation].append((start, end))
    comm.Barrier()
    hvd.shutdown()
    return {"spans": spans, "left_out": left_out, "products": products}


_MATRIX = torch.full((_SIDE, _SIDE), 1 / _SIDE)


def _work(products: int) -> None:
    for _ in range(products):
        torch.mm(_MATRIX, _MATRIX)


def _calibrate(work_ms: float) -> int:
    """How many products take `work_ms` on a core of its own: the best of some tries."""
    _work(200)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _work(200)
        seconds.append((time.perf_counter() - start) / 200)
    return max(1, round(work_ms / 1e3 / min(seconds)))


def _meet_asleep(comm: Any) -> None:
    """A barrier whose waiting ranks leave the cores to the others."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(2e-4)


# -- in the driver


def summarise(ranks: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each size, arm and situation: quartiles of the rounds' times (s)."""
    records = []
    for nbytes, by_arm in reports[0]["spans"].items():
        for arm, by_situation in by_arm.items():
            for situation in by_situation:
                spans = zip(*(rank["spans"][nbytes][arm][situation] for rank in reports), strict=True)
                seconds = [max(end for _, end in span) - min(start for start, _ in span) for span in spans]
                low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
                records.append({"ranks": ranks, "bytes": int(nbytes), "arm": arm, "situation": situation,
                                "median_s": median, "quartiles_s": [low, high]})  # fmt: skip
    return records


class Findings:
    """The records of one number of ranks and one size, as the table and the sentence need them."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._by_key = {(record["arm"], record["situation"]): record for record in records}
        self.arms = list(dict.fromkeys(record["arm"] for record in records))

    def round_s(self, arm: str, situation: str) -> float:
        """The median round."""
        median: float = self._by_key[arm, situation]["median_s"]
        return median

    def delay_s(self, arm: str, situation: str) -> float:
        """How much longer a round with this straggler is than an even one."""
        return self.round_s(arm, situation) - self.round_s(arm, "even")

    def added_s(self, arm: str, situation: str) -> float:
        """The delay beyond the straggler's own."""
        return self.delay_s(arm, situation) - self.delay_s(ALONE, situation)

    def spread_s(self, arm: str, situation: str) -> float:
        """Half the distance of the quartiles."""
        low, high = self._by_key[arm, situation]["quartiles_s"]
        return (high - low) / 2

    def compare(self, one: str, other: str, situation: str) -> int:
        """1 where `one`'s round is faster by more than the two's spreads together, -1 where `other`'s, or 0."""
        gain = self.round_s(other, situation) - self.round_s(one, situation)
        noise = self.spread_s(one, situation) + self.spread_s(other, situation)
        return 0 if abs(gain) <= noise else (1 if gain > 0 else -1)


def conclude(findings: Findings) -> str:
    """What the measurement says about the claim that ring suits uneven and tree even resources."""
    if not {"ring", "tree"} <= set(findings.arms):
        return "ring and tree were not both measured, so nothing is said about the claim."
    winners, sentences = [], []
    for situation, favourite in (("even", "tree"), ("first slow", "ring"), ("last slow", "ring")):
        winner = {1: "ring", -1: "tree", 0: "neither"}[findings.compare("ring", "tree", situation)]
        winners.append((winner, favourite))
        times = ", ".join(f"{name} {findings.round_s(name, situation) * 1e3:.2f} ms" for name in ("ring", "tree"))
        sentences.append(
            f"{situation}: {'no difference beyond the spread' if winner == 'neither' else winner} ({times})"
        )
    right = sum(winner == favourite for winner, favourite in winners)
    held = {3: "holds here", 0: "does not hold here"}.get(right, f"holds in {right} of 3 situations")
    if all(winner == "neither" for winner, _ in winners):
        held = "shows no effect here"
    slow = [arm for arm in findings.arms if arm != ALONE]
    worst = {arm: max(findings.added_s(arm, situation) for situation in SITUATIONS[1:]) for arm in slow}
    fastest = {situation: min(slow, key=lambda arm: findings.round_s(arm, situation)) for situation in SITUATIONS}
    least = min(slow, key=lambda arm: worst[arm])
    return (
        f"The claim that ring suits uneven and tree even ranks {held}. Faster of the two: {'; '.join(sentences)}. "
        f"Of all, the shortest rounds: {', '.join(f'{where} {arm}' for where, arm in fastest.items())}; the least "
        f"added delay, at worst {worst[least] * 1e3:+.2f} ms: {least}."
    )


def print_findings(ranks: int, nbytes: int, factor: float, work_ms: float, findings: Findings) -> str:
    """The table of one number of ranks and one size, and the sentence; returns them as Markdown."""
    rows = []
    for arm in findings.arms:
        row = [arm, f"{findings.round_s(arm, 'even') * 1e3:.2f}"]
        for situation in SITUATIONS[1:]:
            added = "-" if arm == ALONE else f"{findings.added_s(arm, situation) * 1e3:+.2f}"
            spread = findings.spread_s(arm, situation) + findings.spread_s(arm, "even")
            row += [f"{findings.round_s(arm, situation) * 1e3:.2f}", added, f"{spread * 1e3:.2f}"]
        rows.append(row)
    own = ", ".join(f"{where} {findings.delay_s(ALONE, where) * 1e3:.2f} ms" for where in SITUATIONS[1:])
    header = ["arm", "even round ms", "first slow ms", "added ms", "+-", "last slow ms", "added ms", "+-"]
    title = (f"all-reduce of {nbytes / KIB:.0f} KiB after {work_ms:g} ms of work, one rank {factor:g} times as slow, "
             f"{ranks} ranks on {len(usable_cores())} cores (own delay: {own})")  # fmt: skip
    shown = print_table(f"\n{title}", header, rows)
    print(conclude(findings), flush=True)
    return f"{shown}\n{conclude(findings)}\n"


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="one job each (default: 2 4)")
    parser.add_argument("--factor", type=float, default=3, help="the slow rank's work over the others' (default: 3)")
    parser.add_argument("--work-ms", type=float, default=10, help="work of a rank on a free core (default: 10)")
    parser.add_argument("--kib", type=int, nargs="+", default=[64, 4096, 32768], help="messages, KiB (default: 64 4096 "
                        "32768)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="of each arm and situation (default: 20)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the picture")
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [kib * KIB for kib in options.kib]
    if options.as_rank:
        report(options.as_rank, measure(options.factor, options.work_ms, sizes, options.rounds))
        return
    end_when_told()
    everything, parts = [], []
    for ranks in options.ranks:
        words = ["--factor", str(options.factor), "--work-ms", str(options.work_ms), "--rounds", str(options.rounds),
                 "--kib", *map(str, options.kib), "--as-rank"]  # fmt: skip
        try:
            reports = run_job(on_this_machine(ranks, __file__, *words), ranks, timeout_s=1200)
        except JobError as error:
            sys.exit(str(error))
        for strategy, reason in reports[0]["left_out"].items():
            print(f"left out at {ranks} ranks: {strategy}: {reason}")
        records = summarise(ranks, reports)
        for nbytes in sizes:
            findings = Findings([record for record in records if record["bytes"] == nbytes])
            parts.append(print_findings(ranks, nbytes, options.factor, options.work_ms, findings))
        print_record("straggler", ranks, {"factor": options.factor, "work_ms": options.work_ms, "rounds": records})
        everything += records
    write_page(options.results, "straggler", "An all-reduce with a slow rank", parts)
    print(f"picture: {draw_stragglers(everything, options.factor, options.results / 'straggler.png')}")


if __name__ == "__main__":
    main()
