"""How long does a merge of models on disk take, and how much memory, beside mergekit and beside copying the bytes?

Models of random values are written once. Then, in turns, each rule is applied by `hvdkit merge` over ranks (a thread
each), by mergekit with as many threads in one process, and, as a bound for linear rules, the inputs are read and as
many bytes as one of them are written by as many processes that do nothing else. Inputs are in the page cache, outputs
are forced to disk on all sides, times are of whole processes, start-up included, but for "merging", which
is what hvdkit says that it took without its start. Memory is the largest resident set of
any process of a job. mergekit is installed into an environment of its own.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml

from benchmarks.job import print_record, print_table, write_page
from benchmarks.measured_job import run_to_end
from benchmarks.merge_picture import draw_merges
from hvdkit.launch.job import end_when_told

MERGEKIT = "mergekit==0.1.5"
RULES: dict[str, dict[str, Any]] = {
    "average": {"merge_method": "linear"},
    "slerp": {"merge_method": "slerp", "parameters": {"t": 0.5}},
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    "ties": {"merge_method": "ties"},
    "dare_ties": {"merge_method": "dare_ties"},
    "model_stock": {"merge_method": "model_stock"},
}
"""By hvdkit's names what mergekit calls them."""
LINEAR = ("average", "task_arithmetic")
DENSITY = 0.5
_COPY = """
import os, sys
rank, ranks, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
buffer = memoryview(bytearray(2**19))
written = os.open(out, os.O_WRONLY)
for number, path in enumerate(sys.argv[4:]):
    source = os.open(path, os.O_RDONLY)
    blocks = -(-os.fstat(source).st_size // len(buffer))
    for block in range(blocks * rank // ranks, blocks * (rank + 1) // ranks):
        count = os.preadv(source, [buffer], block * len(buffer))
        if number == 0:
            os.pwrite(written, buffer[:count], block * len(buffer))
os.fsync(written)
"""


def models_of(rule: str, paths: Sequence[Path]) -> Sequence[Path]:
    """Slerp takes two."""
    return paths[1:3] if rule == "slerp" else paths[1:]


def write_recipes(folder: Path, rule: str, paths: Sequence[Path]) -> tuple[Path, Path]:
    """The same merge for hvdkit and for mergekit."""
    models = models_of(rule, paths)
    weight = 1 / len(models)
    ours = {"rule": rule, "base": str(paths[0]), "models": [
        {"path": str(path), "weight": weight, "density": DENSITY} for path in models
    ]}  # fmt: skip
    if rule in ("average", "slerp"):
        del ours["base"]
    needs_base = rule != "average"
    theirs = {**RULES[rule], "dtype": "bfloat16", "models": [
        {"model": str(path), "parameters": {"weight": weight, "density": DENSITY}} for path in models
    ]}  # fmt: skip
    if needs_base:
        theirs["base_model"] = str(models[0] if rule == "slerp" else paths[0])
    for name, content in (("ours.yaml", ours), ("theirs.yaml", theirs)):
        (folder / name).write_text(yaml.safe_dump(content))
    return folder / "ours.yaml", folder / "theirs.yaml"


def timed(commands: Sequence[Sequence[str]], threads: int, out: Path) -> dict[str, Any]:
    """Run `commands` at once; seconds until all are done and `out` is on disk, peak memory in bytes, the last line."""
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(Path(__file__).with_name("timed_job.py")), json.dumps(commands), str(out)]
    status, printed = run_to_end(words, env=environment, timeout_s=3600)
    if status:
        sys.exit(printed)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def measure(rule: str, paths: Sequence[Path], folder: Path, ranks: int, mergekit: Path | None) -> dict[str, Any]:
    """One round: every arm once."""
    ours, theirs = write_recipes(folder, rule, paths)
    inputs = [str(path / "model.safetensors") for path in models_of(rule, paths)]
    if rule not in ("average", "slerp"):
        inputs.append(str(paths[0] / "model.safetensors"))
    copy = folder / "copy"
    copy.touch()
    arms: dict[str, tuple[list[list[str]], int, Path]] = {
        "hvdkit": ([["mpirun", "-np", str(ranks), sys.executable, "-m", "hvdkit.merge", str(ours), "--out",
                     str(folder / "hvdkit")]], 1, folder / "hvdkit"),
        "copy": ([[sys.executable, "-c", _COPY, str(rank), str(ranks), str(copy), *inputs] for rank in range(ranks)], 1,
                 copy),
    }  # fmt: skip
    if mergekit is not None:
        words = [str(mergekit), str(theirs), str(folder / "mergekit"), "--quiet", "-j", str(ranks)]
        arms["mergekit"] = ([words], ranks, folder / "mergekit")
    for path in inputs:  # into the page cache
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while file.read(2**24):
                pass
    record: dict[str, Any] = {"rule": rule}
    for arm, (commands, threads, out) in arms.items():
        found = timed(commands, threads, out)
        record |= {f"{arm}_s": found["s"], f"{arm}_bytes": found["bytes"]}
        if arm == "hvdkit":
            record["inside_s"] = float(re.findall(r"in ([\d.]+) s", found["last_line"])[0])
    if mergekit is not None:
        record["difference"] = float(of_models("difference", folder / "hvdkit", folder / "mergekit"))
    for arm in ("hvdkit", "mergekit"):
        shutil.rmtree(folder / arm, ignore_errors=True)
    copy.unlink()
    return record


def of_models(*words: object) -> str:
    """What `merge_models.py` prints."""
    command = [sys.executable, str(Path(__file__).with_name("merge_models.py")), *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def install_mergekit(folder: Path) -> Path:
    """The command of mergekit in an environment of its own, made at first use."""
    command = folder / "bin" / "mergekit-yaml"
    if not command.exists():
        print(f"installing {MERGEKIT} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"torch=={version('torch').split('+')[0]}"], check=True)
        subprocess.run([*pip, MERGEKIT], check=True)
    return command


def table(rounds: Sequence[dict[str, Any]], title: str) -> str:
    """Medians over rounds, ratios within rounds; prints it and returns it as Markdown."""
    header = ["rule", "hvdkit s", "mergekit s", "times as fast", "copy s", "hvdkit, merging s",
              "times copying", "hvdkit MB", "mergekit MB",
              "share", "largest difference"]  # fmt: skip
    rows = []
    for rule in dict.fromkeys(record["rule"] for record in rounds):
        mine = [record for record in rounds if record["rule"] == rule]

        def median(key: str, over: str | None = None, mine: list[dict[str, Any]] = mine) -> str:
            if key not in mine[0] or (over and over not in mine[0]):
                return "-"
            values = [record[key] / (record[over] if over else 1) for record in mine]
            scale = 1e-6 if key.endswith("bytes") and not over else 1
            return f"{statistics.median(values) * scale:.3g}"

        rows.append([rule, median("hvdkit_s"), median("mergekit_s"), median("mergekit_s", "hvdkit_s"), median("copy_s"),
                     median("inside_s"), median("inside_s", "copy_s"), median("hvdkit_bytes"), median("mergekit_bytes"),
                     median("hvdkit_bytes", "mergekit_bytes"), median("difference")])  # fmt: skip
    return print_table(f"\n{title}", header, rows)


def main() -> None:
    """Write models, merge them in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=500e6, help="of each model, about (default: 500e6)")
    parser.add_argument("--models", type=int, default=4, help="beside the base (default: 4)")
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=RULES, help="default: all")
    parser.add_argument("--ranks", type=int, default=2, help="of hvdkit, threads of mergekit (default: 2)")
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--no-mergekit", action="store_true", help="leave it out, and don't install it")
    parser.add_argument("--mergekit-env", type=Path, default=Path(__file__).parents[1] / ".venv-mergekit",
                        help="its environment (default: .venv-mergekit)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the page")
    options = parser.parse_args()
    end_when_told()
    mergekit = None if options.no_mergekit else install_mergekit(options.mergekit_env)
    folder = Path(tempfile.mkdtemp(prefix="hvdkit-merge-"))
    rounds = []
    try:
        of_models("write", folder, int(options.parameters), options.models)
        paths = [folder / "base", *(folder / f"model{number}" for number in range(1, options.models + 1))]
        for number in range(options.rounds):
            for rule in options.rules:
                rounds.append(measure(rule, paths, folder, options.ranks, mergekit))
                print(f"round {number + 1}, {rule}: {rounds[-1]}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    title = f"{options.models} models of {options.parameters / 1e6:.0f} M parameters in bfloat16, {options.ranks} ranks"
    part = table(rounds, title)
    print_record("merge", [options.ranks], rounds)
    write_page(options.results, "merge", f"Merging {title}", [part])
    print(f"picture: {draw_merges(rounds, title, options.results / 'merge.png')}")


if __name__ == "__main__":
    main()
