"""GPUs: gradients over NCCL and training in `hvdkit.train`. Runs where there is a GPU for every rank."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hvdkit as hvd
from hvdkit.runtime import World
from hvdkit.train.job import Job
from tests.optim.problems import assert_same_gradients, batches, mine, mlp, square_loss, twin
from tests.train.runs import assert_same_losses, configure, losses, write_text_together


@pytest.fixture
def gpu(world: World) -> torch.device:
    """This rank's GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if torch.cuda.device_count() < world.local_size:
        pytest.skip(f"{torch.cuda.device_count()} GPUs for {world.local_size} ranks: NCCL needs one for each")
    if world.size > 1 and not hvd.nccl_built():
        pytest.skip("Horovod was built without NCCL")
    assert world.device == torch.device("cuda", world.local_rank)
    return world.device


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_sums_over_nccl(world: World, gpu: torch.device, dtype: torch.dtype) -> None:
    mine = torch.arange(5, device=gpu).to(dtype) + world.rank
    wanted = sum((torch.arange(5) + rank for rank in range(world.size)), torch.zeros(5, dtype=torch.int64)).to(dtype)
    torch.testing.assert_close(hvd.allreduce(mine, op=hvd.Sum).cpu(), wanted)


def test_gradients_over_nccl(world: World, gpu: torch.device) -> None:
    model = mlp().to(gpu)
    reference = twin(model)
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=64)
    for batch in batches(world, steps=3):
        model.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch.to(gpu))).backward()
        square_loss(reference, batch.to(gpu)).backward()
        assert_same_gradients(model, reference)


def test_training_as_on_the_cpu(world: World, gpu: torch.device, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    on_gpu = Job(world, configure(data, shared_path / "gpu"))
    on_gpu.run()
    assert next(on_gpu.model.parameters()).device == gpu
    Job(replace(world, device=torch.device("cpu")), configure(data, shared_path / "cpu")).run()
    if world.is_root:
        assert_same_losses(losses(shared_path / "gpu"), losses(shared_path / "cpu"), tolerance=1e-8)
