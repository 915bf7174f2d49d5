"""Batches through torch's DataLoader, for those who want worker processes.

    DataLoader(BatchDataset(samples, sampler), batch_size=None, sampler=sampler.positions(start, steps), num_workers=2)

hvdkit's own loop reads the memory map directly, which takes microseconds.
"""

import torch

from hvdkit.data.batches import Batch, Samples
from hvdkit.data.sampler import Position, ShardedSampler


class BatchDataset(torch.utils.data.Dataset[Batch]):
    """This rank's batch at each `Position`; works under fork, forkserver and spawn (the token file is mapped anew)."""

    def __init__(self, samples: Samples, sampler: ShardedSampler) -> None:
        self.samples = samples
        self.sampler = sampler

    def __getitem__(self, position: Position) -> Batch:
        return self.samples.batch(self.sampler.indices(position), position.epoch)
