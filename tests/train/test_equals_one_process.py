"""Training on any number of ranks gives the losses of a plain loop in one process, uneven batches included."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hvdkit.data import Position, Samples, ShardedSampler, prepare_corpus
from hvdkit.models import build_model
from hvdkit.runtime import World
from hvdkit.train.config import TrainConfig
from hvdkit.train.job import Job
from tests.jobs import run_ranks, succeed
from tests.train.runs import as_words, assert_same_losses, configure, losses, write_text, write_text_together


def plain_losses(config: TrainConfig, samples: Samples, vocab_size: int) -> dict[int, float]:
    """The same training in a loop of one's own: torch alone, the global batch in one piece. Nats per token."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, vocab_size, config.context).double()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2))
    sampler = ShardedSampler(len(samples), config.batch_size, rank=0, size=1, seed=config.seed)
    position, found = Position(), {}
    for step in range(config.steps):
        warm, rest = config.warmup_steps, config.steps - config.warmup_steps
        cosine = (1 + math.cos(math.pi * (step - warm) / rest)) / 2
        share = (step + 1) / warm if step < warm else config.min_lr + (1 - config.min_lr) * cosine
        batch = samples.batch(sampler.indices(position), position.epoch)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * share
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        found[step + 1] = loss.item()
        position = sampler.following(position)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2},
        {"model": "bert-toy"},
        {"clip_norm": 1e-3, "weight_decay": 0.5},
        {"sharding": 1},
        {"sharding": 2, "accumulate": 2},
        {"sharding": 3, "accumulate": 2},
        {"sharding": 3, "model": "bert-toy", "clip_norm": 1e-3},
    ],
    ids=["gpt", "accumulated", "bert", "clipped", "stage 1", "stage 2", "stage 3", "stage 3, bert"],
)
def test_losses_of_a_plain_loop(world: World, shared_path: Path, options: dict[str, Any]) -> None:
    data = write_text_together(world, shared_path / "text")
    config = configure(data, shared_path / "run", **options)
    job = Job(world, config)
    assert 0 < len(job.samples) % config.batch_size < 8 < 2 * job.loop.sampler.steps_per_epoch < 20, "uneven tails"
    job.run()
    wanted = plain_losses(config, job.samples, job.corpus.tokenizer.vocab_size)
    if world.is_root:
        unit = job.corpus.nats_per_byte(1.0) if job.model.objective == "causal" else 1.0
        assert_same_losses(losses(shared_path / "run"), {step: loss * unit for step, loss in wanted.items()})


@pytest.mark.launch
def test_4_and_8_ranks_and_a_resume_with_3(tmp_path: Path) -> None:
    """Against one rank under plain python; with 8 ranks and a tail of 5 sequences some ranks have nothing to do."""
    data = write_text(tmp_path / "text")
    succeed(run_ranks(1, "-m", "hvdkit.train", *as_words(configure(data, tmp_path / "1")), launcher="python"))
    wanted, validated = losses(tmp_path / "1"), losses(tmp_path / "1", "validation_loss")
    assert len(wanted) == 20 and sorted(validated) == [0, 10, 20]
    for ranks in (4, 8):
        words = as_words(configure(data, tmp_path / str(ranks)))
        succeed(run_ranks(ranks, "-m", "hvdkit.train", *words, launcher="horovodrun-mpi", timeout_s=240))
        assert_same_losses(losses(tmp_path / str(ranks)), wanted)
        assert_same_losses(losses(tmp_path / str(ranks), "validation_loss"), validated)
    checkpoint = tmp_path / "4" / "checkpoints" / "step-00000010"
    resume = ["--resume", str(checkpoint), "--out", str(tmp_path / "resumed")]
    result = succeed(run_ranks(3, "-m", "hvdkit.train", *resume))
    assert "saved by 4 ranks, continued by 3" in result.stdout
    assert_same_losses(losses(tmp_path / "resumed"), {step: loss for step, loss in wanted.items() if step > 10})


def test_evaluation_is_exact_on_any_number_of_ranks(world: World, shared_path: Path) -> None:
    """The validation loss that a job reports is the mean over every held-out target, each once."""
    data = write_text_together(world, shared_path / "text")
    job = Job(world, configure(data, shared_path / "run", steps=1, eval_every=0))
    job.run()
    corpus = prepare_corpus(world, job.config.corpus, context=job.config.context)
    everything = corpus.samples("validation", "causal", job.config.context)
    batch = everything.batch(range(len(everything)))
    with torch.no_grad():
        logits = job.model.eval()(batch.inputs)
    wanted = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100).item()
    assert batch.n_targets == len(corpus.validation) - 1
    assert abs(job.validation_loss - corpus.nats_per_byte(wanted)) < 1e-9
