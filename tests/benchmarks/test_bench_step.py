"""The arms of a training step train the same model, which one process on the union of the batches trains too."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_step import _check_losses
from benchmarks.measured_job import JobError
from benchmarks.step_arms import OPTIMIZERS, SIZES, StepOptions, read_pss_bytes, read_resident_peak_bytes
from hvdkit.models.gpt import GPT
from tests.benchmarks.drivers import run_driver

STEPS = 2


def loss_of_one_process(ranks: int, optimizer_name: str, steps: int) -> float:
    """The loss at the last of `steps` steps on all ranks' batches together."""
    size = SIZES["toy"]
    torch.manual_seed(1)
    model = GPT(size.config)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    shape = (size.batch_size, size.config.context + 1)
    batches = [
        torch.randint(size.config.vocab_size, shape, generator=torch.Generator().manual_seed(1000 + rank))
        for rank in range(ranks)
    ]
    tokens = torch.cat(batches)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.launch
def test_every_arm_trains_what_one_process_trains(tmp_path: Path) -> None:
    arms = ["local", "stock-groups", "ddp", "hvdkit"]
    words = ["--models", "toy", "--optimizers", "adamw", "--ranks", "2", "--rounds", "1", "--steps", str(STEPS)]
    printed, (records,) = run_driver("step", tmp_path, *words, "--arms", *arms)
    assert [record["arm"] for record in records] == arms
    warmup = StepOptions("toy", "adamw", 1, STEPS).warmup
    expected = loss_of_one_process(2, "adamw", warmup + 1 + STEPS)
    for record in records:
        assert record["exposed_s"] == pytest.approx([record["mean_s"] - records[0]["mean_s"]], abs=1e-9)
        assert 2**26 < record["pss_peak_bytes"] <= record["resident_peak_bytes"]
        if record["arm"] == "local":
            assert abs(record["losses"][0] - expected) > 1e-3
        else:
            assert record["losses"] == pytest.approx([expected], rel=2e-5)
    assert "2 ranks x 1 threads" in printed and "256 tokens per rank in sequences of 128" in printed


def test_another_model_is_an_error() -> None:
    options = StepOptions("toy", "sgd", 1, 1)
    same = [{"arm": "stock", "losses": [2.0, 1.0]}, {"arm": "hvdkit", "losses": [2.0002, 1.0]},
            {"arm": "local", "losses": [3.0, 3.0]}]  # fmt: skip
    _check_losses(same, options)
    _check_losses([*same, {"arm": "hvdkit-int8", "losses": [2.1, 1.0]}], options)
    with pytest.raises(JobError, match="did not train the same toy"):
        _check_losses([*same, {"arm": "ddp", "losses": [2.0, 1.002]}], options)


def test_options_travel_as_words() -> None:
    options = StepOptions("4m", "sgd", threads=3, steps=7, warmup=1, batch_size=5)
    assert StepOptions.from_words(options.words()) == options


def test_sizes_are_those_of_the_title() -> None:
    parameters = {name: sum(p.numel() for p in GPT(SIZES[name].config).parameters()) for name in ("4m", "33m", "132m")}
    assert parameters == {"4m": 4_048_384, "33m": 32_134_464, "132m": 133_233_600}


def test_memory_is_that_of_this_process() -> None:
    before = read_pss_bytes()
    block = torch.ones(2**24)
    assert read_pss_bytes() - before == pytest.approx(block.nbytes, rel=0.1)
    assert read_resident_peak_bytes() >= read_pss_bytes()
