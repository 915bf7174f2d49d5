"""Does training with compressed gradients reach the loss that it reaches without compression?

The same model is trained on the default corpus once per compression, by `python -m hvdkit.train`, from the same initial
weights on the same batches. How far two runs end apart that differ in nothing but their seed is measured too, without
compression: a smaller difference says nothing. What each run sent is what hvdkit counts: the bytes of a rank's messages
(times 2(p-1)/p for an all-reduce, p-1 for an all-gather), without the protocols below.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.job import markdown, print_record, print_table, replacing
from benchmarks.machine import describe_machine
from benchmarks.measured_job import JobError, run_to_end
from hvdkit.launch.job import end_when_told
from hvdkit.models import PRESETS
from hvdkit.train.config import TrainConfig
from hvdkit.train.metrics import read_metrics

NONE = "none"
COMPRESSIONS = (NONE, "fp16", "bf16", "int8", "powersgd", "topk", "topk:ratio=0.1")
MODELS = [name for name, preset in PRESETS.items() if preset.architecture == "gpt"]
"""Those whose loss is in nats per byte."""
LIMIT_S = 3600
_MORE_RANKS = (
    "With more ranks int8 and topk save less: every rank sends its message to all others, (p-1) times, where an "
    "all-reduce sends it 2(p-1)/p times."
)


@dataclass(frozen=True)
class Run:
    """What one training run left behind; losses in nats per byte, by the number of steps done."""

    compression: str
    seed: int
    loss: dict[int, float]
    """Of training, the mean since the number before."""
    validation_loss: dict[int, float]
    bytes_per_step: float
    """That rank 0 sent."""

    @property
    def end(self) -> float:
        """Validation loss after the last step."""
        return self.validation_loss[max(self.validation_loss)]


@dataclass(frozen=True)
class Compared:
    """A run beside the one without compression of the first seed."""

    run: Run
    name: str
    difference_percent: dict[int, float]
    """Of the validation loss, by the number of steps done; positive is worse."""
    times_fewer_bytes: float

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.run), "name": self.name, "difference_percent": self.difference_percent,
                "times_fewer_bytes": self.times_fewer_bytes}  # fmt: skip


def plan(compressions: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Compression and seed of each run: without compression first, and with every seed; the others with the first."""
    others = [name for name in dict.fromkeys(compressions) if name != NONE]
    return [*((NONE, seed) for seed in seeds), *((name, seeds[0]) for name in others)]


def train(ranks: int, config: TrainConfig) -> Run:
    """Train on `ranks` ranks as `config` says, in a folder that does not stay. Raises JobError."""
    with tempfile.TemporaryDirectory() as folder:
        replace(config, out=None).write(Path(folder) / "asked.yaml")
        out = Path(folder) / "run"
        words = ["mpirun", "-np", str(ranks), sys.executable, "-m", "hvdkit.train",
                 "--config", str(Path(folder) / "asked.yaml"), "--out", str(out)]  # fmt: skip
        unbound = {"OMPI_MCA_hwloc_base_binding_policy": "none"}
        status, printed = run_to_end(words, env=unbound, timeout_s=LIMIT_S)
        if status:
            raise JobError(f"status {status}: {' '.join(words)}\n{printed}")
        return read_run(config, read_metrics(out))


def read_run(config: TrainConfig, lines: Sequence[dict[str, Any]]) -> Run:
    """The run that left these `lines` of metrics."""
    by_key = {
        key: {line["step"]: line[key] for line in lines if key in line}
        for key in ("loss", "validation_loss", "bytes_per_step")
    }
    sent = by_key["bytes_per_step"]
    return Run(config.compression, config.seed, by_key["loss"], by_key["validation_loss"], sent[max(sent)])


def compare(runs: Sequence[Run]) -> list[Compared]:
    """All runs beside the first."""
    plain = runs[0]
    return [
        Compared(
            run,
            run.compression if run.seed == plain.seed else f"{run.compression}, seed {run.seed}",
            {step: (loss / plain.validation_loss[step] - 1) * 100 for step, loss in run.validation_loss.items()},
            plain.bytes_per_step / run.bytes_per_step,
        )
        for run in runs
    ]


def table(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: losses at the start, in the middle and at the end, and what was sent."""
    steps = sorted(compared[0].run.validation_loss)
    last = steps[-1]
    shown = list(dict.fromkeys((steps[0], min(steps, key=lambda step: abs(step - last / 2)), last)))
    header = ["compression", *(f"loss at step {step}" for step in shown),
              "end, against none", "sent per step and rank, kB", "times fewer"]  # fmt: skip
    rows = [
        [
            item.name,
            *(f"{item.run.validation_loss[step]:.4f}" for step in shown),
            "" if item is compared[0] else f"{item.difference_percent[last]:+.2f}%",
            f"{item.run.bytes_per_step / 1e3:,.1f}",
            f"{item.times_fewer_bytes:.2f}",
        ]
        for item in compared
    ]
    return header, rows


def conclude(compared: Sequence[Compared]) -> str:
    """What the differences at the end say, in view of those that a seed makes."""
    ends = {item.name: item.difference_percent[max(item.difference_percent)] for item in compared[1:]}
    by_seed = [abs(ends[item.name]) for item in compared[1:] if item.run.compression == NONE]
    if not by_seed:
        return "One seed only: nothing tells which differences are more than chance."
    chance = max(by_seed)
    others = {item.name: ends[item.name] for item in compared if item.run.compression != NONE}
    within = [name for name, difference in others.items() if difference <= chance]
    worse = [f"{name} ({difference:+.1f}%)" for name, difference in others.items() if name not in within]
    return (
        f"Another seed alone moves the end by up to {chance:.2f}%. Not worse by more than that: "
        f"{', '.join(within) or 'none of them'}. Worse by more: {', '.join(worse) or 'none of them'}."
    )


def page(title: str, told: str, compared: Sequence[Compared]) -> str:
    """The results as Markdown."""
    machine = "\n".join(f"- {name}: {value}" for name, value in describe_machine().items())
    return (
        f"# Convergence with compressed gradients\n\nProduced by `make bench-compression`.\n\n{machine}\n\n{title}\n"
        f"{told}\n\n{markdown(*table(compared))}\n\n{conclude(compared)}\n\n{_MORE_RANKS}\n\n"
        "![loss over steps](compression.png)\n"
    )


def _tell(ranks: int, config: TrainConfig) -> tuple[str, str]:
    batch = config.global_batch(ranks)
    return (
        f"{config.model}, {config.steps} steps of {batch} sequences of {config.context} on {ranks} ranks, "
        f"AdamW, peak learning rate {config.peak_lr(ranks):g}.",
        f"Loss: of validation, nats/byte, on the first {config.eval_batches * config.batch_size} held-out sequences, "
        "after the last step on all.",
    )


def _run(ranks: int, compressions: Sequence[str], seeds: Sequence[int], usual: TrainConfig, results: Path) -> None:
    runs = []
    for compression, seed in plan(compressions, seeds):
        start = time.perf_counter()
        runs.append(train(ranks, replace(usual, compression=compression, seed=seed)))
        took = f"{time.perf_counter() - start:.0f} s"
        print(f"{compression}, seed {seed}: validation loss {runs[-1].end:.4f} nats/byte ({took})", flush=True)
    compared = compare(runs)
    records = [item.record() for item in compared]
    title, told = _tell(ranks, usual)
    print_table(f"\n{title}\n{told}", *table(compared))
    print(conclude(compared))
    results.mkdir(parents=True, exist_ok=True)
    with replacing(results / "compression.md") as path:
        path.write_text(page(title, told, compared), encoding="utf-8")
    with contextlib.suppress(ImportError), replacing(results / "compression.png") as path:
        from benchmarks.compression_picture import draw

        draw(title.partition(", AdamW")[0], records, path)
    print_record("compression", ranks, records, describe_machine())


def main() -> None:
    """Start the jobs and print what they learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="of each job (default: 2)")
    parser.add_argument("--steps", type=int, default=300, help="of each job (default: 300)")
    parser.add_argument("--compressions", nargs="+", default=COMPRESSIONS, metavar="NAME", help="as hvdkit.train's "
                        f"--compression; none is always there (default: {' '.join(COMPRESSIONS)})")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="the first is that of all runs, the "
                        "others show without compression what chance does (default: 0 1)")  # fmt: skip
    parser.add_argument("--model", choices=MODELS, default="gpt-mini", help="default: gpt-mini")
    parser.add_argument("--context", type=int, default=128, help="tokens per sequence (default: 128)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per rank (default: 8)")
    parser.add_argument("--data", nargs="+", default=[], help="as hvdkit.train takes it (default: the default corpus)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the table "
                        "and the picture (default: benchmarks/results)")  # fmt: skip
    options = parser.parse_args()
    if options.ranks < 2 or options.steps < 2:
        parser.error(f"--ranks {options.ranks} --steps {options.steps}: two at least")
    usual = TrainConfig(
        data=options.data,
        model=options.model,
        context=options.context,
        batch_size=options.batch_size,
        steps=options.steps,
        warmup_steps=min(TrainConfig.warmup_steps, options.steps // 4),
        eval_every=max(1, options.steps // 8),
        eval_batches=32,
        log_every=max(1, options.steps // 40),
        checkpoint_every=0,
        sample_tokens=0,
    )
    end_when_told()
    try:
        _run(options.ranks, options.compressions, options.seeds, usual, options.results)
    except JobError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
