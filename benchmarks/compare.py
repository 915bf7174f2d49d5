"""The program of `bench_allreduce.py` and its like: options, tables, the JSON line, and the files of results."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.collective import bytes_to_move
from benchmarks.job import markdown, print_record, print_table, replacing
from benchmarks.machine import describe_machine
from benchmarks.peers import KIB, MIB, peer_jobs
from benchmarks.rounds import run_rounds
from benchmarks.summary import Result, Summary, first_line, summarise

SIZES = "1K 4K 16K 64K 256K 1M 4M 16M 32M 64M 128M 256M"
Table = tuple[str, list[str], list[list[str]]]


def main(collective: str, question: str | None, words: list[str] | None = None) -> None:
    """Run the benchmark of `collective` as the command line (or `words`) says."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="one run for each number (default: 2 4)")
    parser.add_argument(
        "--sizes",
        type=parse_size,
        nargs="+",
        default=[parse_size(word) for word in SIZES.split()],
        metavar="BYTES",
        help=f"message sizes, with K or M for KiB or MiB (default: {SIZES})",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        help="interleaved rounds per size; a third of them beyond 128 MiB (default: 30)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder for the table and the picture (default: benchmarks/results)",
    )
    options = parser.parse_args(words)
    if min(options.ranks) < 1 or options.rounds < 1:
        parser.error(f"--ranks {options.ranks} --rounds {options.rounds}: at least one rank and one round")
    try:
        _run(collective, options.ranks, options.sizes, options.rounds, options.out)
    except KeyboardInterrupt:
        sys.exit("interrupted: all jobs have ended")


def _run(collective: str, ranks_of_runs: Sequence[int], sizes: Sequence[int], rounds: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    summaries = []
    for ranks in ranks_of_runs:
        outcome = run_rounds(collective, ranks, sorted(sizes), rounds, peer_jobs(collective, ranks))
        summaries.append(summarise(outcome))
        print(f"{collective} of float32 on {ranks} ranks\n\n{_remarks(summaries[-1])}\n")
        for title, header, rows in tables(summaries[-1]):
            print_table(title, header, rows)
    with replacing(out / f"{collective}.md") as path:
        path.write_text(_page(collective, summaries))
    with contextlib.suppress(ImportError), replacing(out / f"{collective}.png") as path:
        from benchmarks.picture import draw

        draw(summaries, path)
    print_record(collective, ranks_of_runs, [summary.record() for summary in summaries], describe_machine())


def parse_size(word: str) -> int:
    """Bytes: `512`, `64K`, `32M`."""
    unit = {"K": KIB, "M": MIB}.get(word[-1:].upper(), 1)
    return int(word if unit == 1 else word[:-1]) * unit


def name_size(nbytes: int) -> str:
    """Bytes in the largest unit that leaves at least one."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.4g} {name}"
    return f"{nbytes} B"


def tables(summary: Summary) -> list[Table]:
    """Times, bandwidths, ratios and shares: a row per size, a column per contender."""
    reference = summary.reference
    bound: Callable[[int], str] = lambda nbytes: _number(summary.bound_s(nbytes), 1e3)  # noqa: E731
    ratios = _table(summary, f"{reference} is so many times as fast, median over the rounds",
                    lambda result: _ratio(result.reference_is_times_as_fast))  # fmt: skip
    return [
        _table(summary, "median time, ms", lambda result: _number(result.median_s, 1e3), bound),
        _table(summary, "mean time, ms", lambda result: _number(result.mean_s, 1e3), bound),
        _table(summary, "bus bandwidth at the median, GB/s",
               lambda result: _number(result.bus_bandwidth_bytes_per_s, 1e-9)),
        _with_choice(summary, ratios),
        _table(summary, "share of the bound: bound / median time",
               lambda result: "-" if result.share_of_bound is None else f"{result.share_of_bound:.0%}"),
    ]  # fmt: skip


def _with_choice(summary: Summary, table: Table) -> Table:
    """One column more where the reference said which algorithm it chose."""
    title, header, rows = table
    chosen = [result.note if (result := summary.at(summary.reference, nbytes)) else None for nbytes in summary.sizes()]
    if not any(chosen):
        return table
    longer = [[*row, name or "-"] for row, name in zip(rows, chosen, strict=True)]
    return title, [*header, f"{summary.reference} is"], longer


def _table(
    summary: Summary, title: str, cell: Callable[[Result], str], bound: Callable[[int], str] | None = None
) -> Table:
    names = summary.contenders()
    header = ["message", *names, *(["bound"] if bound else [])]
    rows = []
    for nbytes in summary.sizes():
        found = [summary.at(name, nbytes) for name in names]
        cells = ["-" if result is None else cell(result) for result in found]
        rows.append([name_size(nbytes), *cells, *([bound(nbytes)] if bound else [])])
    return title, header, rows


def _number(value: float | None, scale: float) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    scaled = value * scale
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:#.3g}" if scaled >= 0.01 else f"{scaled:.4f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _remarks(summary: Summary) -> str:
    """What the columns are, and who is missing."""
    outcome = summary.outcome
    oversubscribed = outcome.ranks > len(os.sched_getaffinity(0))
    moved = bytes_to_move(outcome.collective, 1, outcome.ranks)
    lines = [f"- {name}: {settings}" for name, settings in outcome.settings.items()]
    if oversubscribed:
        lines.append("- more ranks than cores: mpirun makes Open MPI yield while idle, in every job")
    if summary.triad_bytes_per_s is not None:
        lines.append(f"- bound: {moved} bytes for each byte of the message, at the triad bandwidth of {outcome.ranks} "
                     f"ranks, {summary.triad_bytes_per_s / 1e9:.1f} GB/s; messages that stay in a cache can beat "
                     "it")  # fmt: skip
    lines += [f"- left out: {name}: {first_line(reason)}" for name, reason in outcome.left_out.items()]
    return "\n".join(lines)


def _page(collective: str, summaries: list[Summary]) -> str:
    machine = "\n".join(f"- {name}: {value}" for name, value in describe_machine().items())
    parts = [f"# {collective} of float32\n\nProduced by `make bench-{collective}`.\n\n{machine}\n\n"
             "Time: mean over ranks of one call after a barrier, every buffer freshly written by its rank. All "
             "contenders take turns in each round; every result was checked once per size.\n"]  # fmt: skip
    for summary in summaries:
        counts = [result.rounds for result in summary.results] or [0]
        rounds = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
        parts.append(f"## {summary.outcome.ranks} ranks, {rounds} rounds per size\n\n{_remarks(summary)}\n")
        parts += [f"{title}:\n\n{markdown(header, rows)}\n" for title, header, rows in tables(summary)]
    return "\n".join(parts)
