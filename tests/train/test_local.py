"""`--local`: training in rounds equals a plain simulation, goes on to the bit, and prints what it saved."""

import copy
import itertools
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hvdkit.data import Position, ShardedSampler
from hvdkit.data.sampler import share_in_proportion
from hvdkit.errors import ConfigError
from hvdkit.models import build_model, load_model
from hvdkit.runtime import World, gather_objects
from hvdkit.train.__main__ import read_configuration
from hvdkit.train.config import TrainConfig, parse
from hvdkit.train.job import Job
from hvdkit.train.schedule import learning_rate
from tests.jobs import run_ranks, succeed
from tests.train.runs import as_words, assert_same_losses, configure, losses, write_text, write_text_together


class Simulated:
    """All workers of a DiLoCo run in one process: AdamW within, Nesterov outside, weights by targets."""

    def __init__(self, job: Job, workers: int) -> None:
        self.config, self.samples = job.config, job.samples
        torch.manual_seed(self.config.seed)
        self.outer = build_model(self.config.model, job.corpus.tokenizer.vocab_size, self.config.context).double()
        self.models = [copy.deepcopy(self.outer) for _ in range(workers)]
        self.inners = [self.adamw(model) for model in self.models]
        self.momenta = [torch.zeros_like(p) for p in self.outer.parameters()]

    def adamw(self, model: torch.nn.Module) -> torch.optim.AdamW:
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.lr, betas=(0.9, self.config.beta2))

    def run(self, sync_every: int, left_out: Collection[tuple[int, int]] = ()) -> dict[int, float]:
        """The mean loss of each step, in nats per token. What each (step, worker) of `left_out` does does not count."""
        size, position, found = len(self.models), Position(), {}
        samplers = [ShardedSampler(len(self.samples), self.config.batch_size, rank, size, 0) for rank in range(size)]
        targets = [0] * size
        for step in range(self.config.steps):
            rate = learning_rate(
                step, peak=self.config.lr, warmup_steps=self.config.warmup_steps, steps=self.config.steps,
                floor=self.config.min_lr,
            )  # fmt: skip
            nats, count = 0.0, 0
            for worker, (model, inner, sampler) in enumerate(zip(self.models, self.inners, samplers, strict=True)):
                batch = self.samples.batch(sampler.indices(position), position.epoch)
                if not batch.n_targets or (step + 1, worker) in left_out:
                    continue
                for group in inner.param_groups:
                    group["lr"] = rate
                inner.zero_grad()
                loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.clip_norm)
                inner.step()
                targets[worker] += batch.n_targets
                nats, count = nats + loss.item() * batch.n_targets, count + batch.n_targets
            found[step + 1] = nats / count if count else math.nan
            position = samplers[0].following(position)
            if (step + 1) % sync_every == 0 or step + 1 == self.config.steps:
                self.synchronise(targets)
                targets = [0] * size
        return found

    @torch.no_grad()
    def synchronise(self, targets: list[int]) -> None:
        for index, outer in enumerate(self.outer.parameters()):
            own = [list(model.parameters())[index] for model in self.models]
            terms = [count * (outer - mine) for count, mine in zip(targets, own, strict=True)]
            mean = torch.stack(terms).sum(dim=0) / sum(targets)
            self.momenta[index].mul_(0.9).add_(mean)
            outer.sub_(0.7 * (mean + 0.9 * self.momenta[index]))
            for mine in own:
                mine.copy_(outer)


def test_losses_of_a_simulation(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    config = configure(data, shared_path / "run", local="diloco", sync_every=7)
    job = Job(world, config)
    simulated = Simulated(job, world.size)
    job.run()
    wanted = simulated.run(7)
    for mine, theirs in zip(job.model.parameters(), simulated.outer.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    if world.is_root:
        unit = job.corpus.nats_per_byte(1.0)
        assert_same_losses(losses(shared_path / "run"), {step: loss * unit for step, loss in wanted.items()})


@pytest.mark.parametrize(
    "options",
    [
        {"sync_every": 4, "accumulate": 2},
        {"sync_every": 6, "fragments": 2, "overlap_steps": 2, "outer_compression": "int8"},
        {"local": "post-local", "local_after": 7, "sync_every": 4},
    ],
    ids=["diloco", "streaming", "post-local"],
)
@pytest.mark.parametrize("stop", [5, 15])
def test_resumed_to_the_bit(world: World, shared_path: Path, options: dict[str, Any], stop: int) -> None:
    data = write_text_together(world, shared_path / "text")
    options = {"local": "diloco", **options}
    whole = Job(world, configure(data, shared_path / "whole", checkpoint_every=5, keep=0, **options))
    whole.run()
    checkpoint = shared_path / "whole" / "checkpoints" / f"step-{stop:08d}"
    resumed = Job(world, read_configuration(["--resume", str(checkpoint), "--out", str(shared_path / "resumed")]))
    resumed.run()
    tolerance = 0.0 if world.size <= 2 or world.backend == "mpi" else 1e-12
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
    if world.is_root:
        for key in ("loss", "validation_loss"):
            wanted = {step: loss for step, loss in losses(shared_path / "whole", key).items() if step > stop}
            assert_same_losses(losses(shared_path / "resumed", key), wanted, tolerance)


def test_a_checkpoint_has_the_outer_model_and_synchronous_training_goes_on(world: World, shared_path: Path) -> None:
    """In the middle of the only round so far the outer model is the initial one."""
    data = write_text_together(world, shared_path / "text")
    job = Job(world, configure(data, shared_path / "run", local="diloco", sync_every=50, steps=11, keep=0))
    begin = [parameter.detach().clone() for parameter in job.model.parameters()]
    job.run()
    saved = load_model(shared_path / "run" / "checkpoints" / "step-00000010" / "model")
    for mine, theirs in zip(saved.parameters(), begin, strict=True):
        assert torch.equal(mine.double(), theirs)
    ended = [parameter.detach().sum().item() for parameter in job.model.parameters()]
    assert gather_objects(world, ended) == [ended] * world.size
    words = ["--resume", str(shared_path / "run"), "--local", "none", "--steps", "13", "--out", str(shared_path / "on")]
    following = Job(world, read_configuration(words))
    for mine, theirs in zip(following.model.parameters(), job.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    following.run()
    words = [
        "--resume",
        str(shared_path / "on"),
        "--local",
        "diloco",
        "--steps",
        "15",
        "--out",
        str(shared_path / "back"),
    ]
    Job(world, read_configuration(words)).run()


@pytest.mark.parametrize(("saved", "words", "wanted"), [
    ("diloco", ["--outer-lr", "0.1", "--outer-momentum", "0"], (0.1, 0.0, False)),
    ("sgd", ["--local", "diloco"], (0.7, 0.9, True)),
    ("diloco", ["--local", "sgd", "--outer-lr", "0.7"], (1.0, 0, False)),
])  # fmt: skip
def test_the_outer_optimizer_is_the_command_lines(
    world: World, shared_path: Path, saved: str, words: list[str], wanted: tuple[float, float, bool]
) -> None:
    """Its momentum is the saved run's; a run that took plain means has none."""
    data = write_text_together(world, shared_path / "text")
    Job(world, configure(data, shared_path / "run", local=saved, sync_every=4, steps=9)).run()
    resume = ["--resume", str(shared_path / "run"), "--out", str(shared_path / "on"), "--steps", "18", *words]
    job = Job(world, read_configuration(resume))
    outer = job.aggregation._outer  # type: ignore[attr-defined]
    assert [(g["lr"], g["momentum"], g["nesterov"]) for g in outer.param_groups] == [wanted] * len(outer.param_groups)
    assert bool(outer.state) == (saved == "diloco")
    job.run()


@pytest.mark.parametrize(("options", "words"), [
    ({"local": "diloco", "sharding": 1}, "--sharding 1 must be 0 with --local diloco"),
    ({"local": "sgd", "compression": "int8"}, "which sends no gradients: use --outer-compression"),
    ({"local": "post-local"}, "--local-after 0 must be 1 or more with --local post-local"),
    ({"local": "sgd", "local_after": 3, "local_level": "nodes"}, "--local-after 3 must be 0 with --local-level nodes"),
    ({"outer_lr": 0.0}, "--outer-lr 0.0 must be more than 0"),
    ({"outer_momentum": 1.0}, r"--outer-momentum 1.0 must be in \[0, 1\)"),
    ({"fragments": 0}, "--fragments 0 must be 1 or more"),
])  # fmt: skip
def test_options_that_do_not_go_together(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configure(tmp_path, tmp_path / "run", **options)


def test_options_that_the_job_refuses(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    for options, words in [
        ({"sync_every": "often"}, "must be a number of steps"),
        ({"outer_compression": "zip"}, "compression 'zip' is not one of"),
        ({"fragments": 50}, "fragments=50 must be 1 to"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Job(world, configure(data, shared_path / "run", local="diloco", **options))


def test_the_command_line(tmp_path: Path) -> None:
    assert parse(["--local", "sgd", "--sync-every", "5"]).sync_every == 5
    assert parse(["--local", "sgd", "--sync-every", "10@0,50@200"]).sync_every == "10@0,50@200"
    parse(["--local", "sgd", "--sync-every", "adaptive:min=3"]).write(tmp_path / "config.yaml")
    wanted = TrainConfig(local="sgd", sync_every="adaptive:min=3")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == wanted


def test_options_of_rounds_without_rounds(tmp_path: Path) -> None:
    """Are one error; but a saved run's are no mistake, whatever it goes on as."""
    words = ["--sync-every", "5", "--pace", "proportional", "--outer-lr", "0.7"]
    with pytest.raises(ConfigError, match=r"^--sync-every 5, --pace proportional: of rounds, which --local none"):
        parse(words)
    with pytest.raises(ConfigError, match=r"--divide goes with none of .*--local"):
        TrainConfig(divide=["a", "b"], local="sgd")
    run = tmp_path / "run"
    run.mkdir()
    TrainConfig(local="diloco", sync_every=5).write(run / "config.yaml")
    resume = ["--resume", str(run)]
    assert read_configuration([*resume, "--outer-lr", "0.1"]).outer_lr == 0.1
    assert read_configuration([*resume, "--local", "none"]).sync_every == 5
    with pytest.raises(ConfigError, match=r"^--fragments 2: of rounds"):
        read_configuration([*resume, "--local", "none", "--fragments", "2"])


def test_parts_of_a_batch_in_proportion() -> None:
    """Every sample once, whatever the shares; in proportion to a sample."""
    for count in (0, 1, 13, 64):
        for shares in ([1.0, 0.5, 0.25], [1.0], [0.0, 1.0, 1 / 3, 0.01]):
            parts = [share_in_proportion(count, rank, shares) for rank in range(len(shares))]
            assert parts[0][0] == 0 and parts[-1][1] == count
            assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
            for (begin, end), share in zip(parts, shares, strict=True):
                assert abs(end - begin - count * share / math.fsum(shares)) <= 1
    sampler = ShardedSampler(40, 8, rank=1, size=2, seed=0)
    assert sampler.indices(Position(0, 8), [1.0, 3.0]).tolist() == sampler.global_indices(Position(0, 8))[2:].tolist()


def test_pace_loses_no_sample(world: World, shared_path: Path) -> None:
    """The ranks' parts of every batch, with shares of measured speeds, are the whole batch."""
    data = write_text_together(world, shared_path / "text")
    job = Job(world, configure(data, shared_path / "run", local="diloco", sync_every=2, pace="proportional"))
    taken: list[list[int]] = []
    indices = job.loop.sampler.indices

    def noted(position: Position, shares: Any = None) -> Any:
        mine = indices(position, shares)
        taken.append(mine.tolist())
        return mine

    job.loop.sampler.indices = noted  # type: ignore[method-assign]
    positions = list(job.loop.sampler.positions(Position(), 20))
    job.run()
    everyone = gather_objects(world, taken)
    for number, position in enumerate(positions):
        parts = [sample for ranks in everyone for sample in ranks[number]]
        assert parts == job.loop.sampler.global_indices(position).tolist()
    assert job.aggregation.shares is not None and max(job.aggregation.shares) == 1.0


@pytest.mark.launch
def test_what_is_printed(tmp_path: Path) -> None:
    usual = configure(write_text(tmp_path / "text"), tmp_path / "run", steps=12, precision="float32", scaling="weak",
                      batch_size=4, local="diloco", sync_every=5, checkpoint_every=4)  # fmt: skip
    printed = succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(usual), launcher="horovodrun-mpi")).stdout
    assert "--local diloco: rounds of 5 steps, each ends with a step of SGD, learning rate 0.7, Nesterov" in printed
    assert "local updates: 12 steps in 3 rounds; " in printed and "1/4 of synchronous training's" in printed
    assert "exchanges took " in printed
    words = ["--resume", tmp_path / "run" / "checkpoints" / "step-00000008", "--out", tmp_path / "three"]
    printed = succeed(run_ranks(3, "-m", "hvdkit.train", *words, launcher="horovodrun-gloo")).stdout
    assert "saved by 2 workers with weights of their own, continued by 3 from the outer model" in printed


@pytest.mark.launch
def test_adaptive_nodes_and_pace_together(tmp_path: Path) -> None:
    data = write_text(tmp_path / "text")
    usual = {"precision": "float32", "scaling": "weak", "batch_size": 4, "local": "diloco", "steps": 16}
    adaptive = configure(
        data, tmp_path / "a", **usual, sync_every="adaptive:min=2,max=8,cost=1e-6", pace="proportional"
    )
    printed = succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(adaptive))).stdout
    assert "rounds of adaptive:" in printed and "in proportion to its speed" in printed
    assert "rounds of 4 steps after 2: drift" in printed
    nodes = configure(data, tmp_path / "n", **usual, sync_every=8, local_level="nodes")
    printed = succeed(run_ranks(2, "-m", "hvdkit.train", *as_words(nodes))).stdout
    assert "the ranks of a node are one worker" in printed
