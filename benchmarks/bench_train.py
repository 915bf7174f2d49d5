"""How much faster is a training step of hvdkit than the same loop on stock `horovod.torch`?

Three jobs take turns, so that a machine whose speed drifts treats them alike: hvdkit as it comes; stock Horovod
under its default settings; and stock Horovod with the threads and the yielding that hvdkit sets. All train the same
model on the same batches with the same optimizer and clipping, and are started by the same launcher.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.job import launch_environment, print_record, print_table

ARMS = {
    "hvdkit": "hvdkit",
    "stock": "stock Horovod, default settings",
    "stock-tuned": "stock Horovod, same threads and yielding",
}


class StockAggregation:
    """The loop's seam on Horovod's own optimizer, used as its documentation says for gradient clipping."""

    def __init__(self, horovod: Any, optimizer: Any, model: Any) -> None:
        horovod.broadcast_parameters(model.state_dict(), root_rank=0)
        self.optimizer = horovod.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    runs_together = False
    gradients_agree = True
    shares = None

    def reached(self, step: int) -> None:
        """See `Aggregation`."""

    def remember(self) -> None:
        """See `Aggregation`."""

    def gradients(self) -> list[tuple[str, Any]]:
        """See `Aggregation`."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return [(str(number), p.grad) for number, p in enumerate(parameters) if p.grad is not None]

    def grad_norm(self) -> Any:
        """See `Aggregation`."""
        from hvdkit.train.weighed_aggregation import norm_of

        return norm_of([gradient for _, gradient in self.gradients()])

    def scale(self, factor: float) -> None:
        """See `Aggregation`."""
        for _, gradient in self.gradients():
            gradient.mul_(factor)

    def skip(self) -> None:
        """See `Aggregation`."""
        self.optimizer.zero_grad()

    def backward(self, mean_loss: Any, n_targets: int, *, is_last: bool) -> None:
        """See `Aggregation`."""
        mean_loss.backward()

    def finish(self) -> None:
        """See `Aggregation`."""
        self.optimizer.synchronize()

    def step(self) -> None:
        """See `Aggregation`."""
        with self.optimizer.skip_synchronize():
            self.optimizer.step()

    def cost(self) -> tuple[float, float]:
        """Horovod does not tell."""
        return 0.0, 0.0


def measure(arm: str, model: str, batch_size: int, steps: int, out: Path) -> None:
    """Run on every rank of one job; rank 0 writes the seconds of each step to `out`."""
    import torch

    from hvdkit.data import prepare_corpus
    from hvdkit.models import build_model
    from hvdkit.train.aggregate import aggregate_with_hvdkit
    from hvdkit.train.building import make_optimizer
    from hvdkit.train.config import TrainConfig
    from hvdkit.train.loop import Loop

    config = TrainConfig(model=model, batch_size=batch_size, steps=steps, log_every=steps)
    world = _hvdkit_world() if arm == "hvdkit" else _stock_world(fair=arm == "stock-tuned")
    corpus = prepare_corpus(world, config.corpus, context=config.context)
    torch.manual_seed(config.seed)
    network = build_model(config.model, corpus.tokenizer.vocab_size, config.context)
    optimizer = make_optimizer(network, config)
    if arm == "hvdkit":
        aggregation: Any = aggregate_with_hvdkit(optimizer, network, config)
    else:
        import horovod.torch as horovod

        aggregation = StockAggregation(horovod, optimizer, network)
    loop = Loop(world, config, network, aggregation, corpus.samples("train", network.objective, config.context))
    ends = [time.perf_counter()]
    loop.run(lambda _: None, lambda _: ends.append(time.perf_counter()))
    if world.is_root:
        out.write_text(json.dumps([after - before for before, after in itertools.pairwise(ends)]))


def _hvdkit_world() -> Any:
    import torch

    import hvdkit as hvd

    world = hvd.init()
    torch.set_num_threads(world.threads)
    return world


def _stock_world(fair: bool) -> Any:
    """Horovod started by itself, as a script of its own would; the loop asks for a `World` all the same."""
    import socket

    import horovod.torch as horovod
    import torch

    from hvdkit.runtime.world import World, usable_cores

    horovod.init()
    if fair:
        torch.set_num_threads(max(1, len(usable_cores()) // horovod.local_size()))
    return World(
        rank=horovod.rank(),
        size=horovod.size(),
        local_rank=horovod.local_rank(),
        local_size=horovod.local_size(),
        cross_rank=horovod.cross_rank(),
        cross_size=horovod.cross_size(),
        backend="mpi",
        hostname=socket.gethostname(),
        device=torch.device("cpu"),
        threads=torch.get_num_threads(),
        generation=1,
    )


def compare(ranks: int, rounds: int, model: str, batch_size: int, steps: int, warmup: int) -> None:
    """Start the jobs in turn and print what they measured."""
    step_s: dict[str, list[float]] = {arm: [] for arm in ARMS}
    job_means: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm in ARMS:
            times = _run_job(arm, ranks, model, batch_size, steps)[warmup:]
            step_s[arm] += times
            job_means[arm].append(statistics.mean(times))
            print(f"round {number + 1} of {rounds}: {ARMS[arm]}: {job_means[arm][-1] * 1e3:.0f} ms a step", flush=True)
    mean = {arm: statistics.mean(times) for arm, times in step_s.items()}
    rows = [
        [
            ARMS[arm],
            f"{mean[arm] * 1e3:.0f}",
            f"{statistics.median(times) * 1e3:.0f}",
            f"{min(job_means[arm]) * 1e3:.0f} to {max(job_means[arm]) * 1e3:.0f}",
            f"{mean[arm] / mean['hvdkit']:.2f}",
        ]
        for arm, times in step_s.items()
    ]
    header = ["loop", "mean ms a step", "median ms", "jobs' means, ms", "hvdkit is so many times as fast"]
    print_table(f"\na training step of {model}, {ranks} ranks, {batch_size} sequences per rank", header, rows)
    results = [{"loop": arm, "step_s": times, "mean_step_s": mean[arm]} for arm, times in step_s.items()]
    print_record("train", ranks, results)


def _run_job(arm: str, ranks: int, model: str, batch_size: int, steps: int) -> list[float]:
    yielding = {"OMPI_MCA_mpi_yield_when_idle": "1"} if arm == "stock-tuned" else {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "steps.json"
        command = ["horovodrun", "-np", str(ranks), sys.executable, __file__, "--arm", arm, "--model", model,
                   "--batch-size", str(batch_size), "--steps", str(steps), "--out", str(out)]  # fmt: skip
        result = subprocess.run(command, env=launch_environment(yielding), capture_output=True, text=True, check=False)
        if result.returncode or not out.exists():
            sys.exit(f"the job of {ARMS[arm]} failed with status {result.returncode}:\n{result.stdout}{result.stderr}")
        times: list[float] = json.loads(out.read_text())
    return times


def main() -> None:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=8, help="ranks of each job (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of each kind (default: 3)")
    parser.add_argument("--model", default="gpt-mini", help="a preset (default: gpt-mini)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per rank (default: 8)")
    parser.add_argument("--steps", type=int, default=30, help="steps of each job (default: 30)")
    parser.add_argument("--warmup", type=int, default=5, help="first steps of each job that do not count (default: 5)")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        measure(options.arm, options.model, options.batch_size, options.steps, options.out)
        return
    compare(options.ranks, options.rounds, options.model, options.batch_size, options.steps, options.warmup)


if __name__ == "__main__":
    main()
