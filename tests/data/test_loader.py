"""torch's DataLoader with worker processes, beside MPI and Horovod that are running and in use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import hvdkit as hvd
from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.data import BatchDataset, MaskedSamples, Position, ShardedSampler
from hvdkit.runtime import World, launch_info

pytestmark = pytest.mark.skipif(launch_info().size > 2, reason="each rank starts processes that import torch")

STEPS = 9
START = Position(1, 24)


@pytest.fixture
def samples(tmp_path: Path) -> MaskedSamples:
    """Samples over a file mapped into memory, the same on all ranks."""
    ids = np.random.Generator(np.random.PCG64(1)).integers(0, 256, 1777).astype(np.uint16)
    (tmp_path / "train.bin").write_bytes(ids.tobytes())
    mapped = np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r")
    return MaskedSamples(mapped, 32, 258, mask_id=257, vocab_size=259, seed=2, kept_ids=(256,))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # this machine has fewer cores
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_give_this_ranks_batches_while_ranks_communicate(
    world: World, samples: MaskedSamples, method: str
) -> None:
    sampler = ShardedSampler(len(samples), 8, world.rank, world.size, seed=5)
    loader = DataLoader(
        BatchDataset(samples, sampler),
        batch_size=None,
        sampler=sampler.positions(START, STEPS),
        num_workers=2,
        multiprocessing_context=method,
        timeout=120,
    )
    strategies = [] if why_no_direct(world) else direct_collectives(world).algorithms.names("all_reduce")
    n_batches = 0
    for position, batch in zip(sampler.positions(START, STEPS), loader, strict=True):
        wanted = samples.batch(sampler.indices(position), position.epoch)
        assert torch.equal(batch.inputs, wanted.inputs) and torch.equal(batch.targets, wanted.targets)
        assert batch.n_targets == wanted.n_targets
        n_batches += 1
        # The workers are alive meanwhile, and must not disturb the ranks' own communication.
        for strategy in (None, *strategies):
            total = hvd.allreduce(torch.tensor([len(batch.inputs)]), op=hvd.Sum, strategy=strategy)
            assert total.item() == len(sampler.global_indices(position))
    assert n_batches == STEPS
    assert hvd.allreduce(torch.ones(1000), op=hvd.Sum).sum().item() == 1000 * world.size
