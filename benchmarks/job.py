"""Starts the ranks of a benchmark, and prints what it measured: a table for people, one JSON line for programs."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def launch_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, and `more`, for launchers: their programs found, root and many ranks allowed."""
    binaries = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        **(more or {}),
    }


def run_ranks(ranks: int, script: str, *words: str, env: Mapping[str, str] | None = None) -> None:
    """Run `python SCRIPT WORDS` on `ranks` ranks under mpirun; ends this program if that fails."""
    command = ["mpirun", "-np", str(ranks), sys.executable, script, *words]
    status = subprocess.run(command, env=launch_environment(env), check=False).returncode
    if status:
        sys.exit(status)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One aligned table; every column's unit stands in `header`. Returns it as Markdown, for `write_page`."""
    print(title)
    print(*aligned([header, *rows], "  "), sep="\n")
    print(flush=True)
    return f"{title.strip()}:\n\n{markdown(header, rows)}\n"


def write_page(folder: Path, benchmark: str, heading: str, parts: Sequence[str]) -> None:
    """Write `folder`/BENCHMARK.md, making the folder: the machine, then `parts`, then the picture beside it."""
    from benchmarks.machine import describe_machine

    machine = "\n".join(f"- {name}: {value}" for name, value in describe_machine().items())
    head = f"# {heading}\n\nProduced by `make bench-{benchmark}`.\n\n{machine}\n"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{benchmark}.md") as path:
        path.write_text("\n".join([head, *parts, f"![{heading}]({benchmark}.png)\n"]), encoding="utf-8")


def aligned(rows: Sequence[Sequence[object]], between: str) -> list[str]:
    """A line per row, its cells right-aligned in columns with `between` between them."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [between.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def markdown(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table of Markdown that is aligned as text too."""
    lines = aligned([header, ["-:"] * len(header), *rows], " | ")
    return "\n".join(f"| {line} |" for line in lines)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when it is whole."""
    beside = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def print_record(
    benchmark: str, ranks: int | Sequence[int], results: object, details: Mapping[str, str] | None = None
) -> None:
    """One JSON line with the versions and the machine, of which `details` may say more."""
    versions = {name: version(name) for name in ("torch", "horovod", "mpi4py", "hvdkit")}
    record = {
        "benchmark": benchmark,
        "ranks": ranks,
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        **({"details": dict(details)} if details else {}),
        "results": results,
    }
    print(json.dumps(record), flush=True)
