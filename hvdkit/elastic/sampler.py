"""`ElasticSampler`: Horovod's name and signature; no sample of an epoch is lost or repeated, whatever resets happen.

An epoch is one permutation of all samples, drawn from seed and epoch, and what is done of it is always a beginning of
it: `processed_num` samples, on all ranks the same number. The rest is dealt out like cards, rank r of p taking every
p-th from the r-th on, so that equal batches on all ranks lengthen the beginning by what they hold. That number is the
whole state; a `TorchState` keeps, rolls back and shares it, and after every reset the rest is dealt anew.

The rest may not divide by p. Then the last p - k ranks get one `filler` each at the very end, so that all ranks run
the same number of steps (a rank with one step less would leave the others waiting in their last all-reduce).
`count(batch_size)` tells how many samples of a batch are real; with it as weight fillers count for nothing. (Horovod
repeats the first samples of the rest instead, and stops with an AssertionError where those are too few.)
"""

import random
from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import Sampler

from hvdkit.runtime import require_world

__all__ = ["ElasticSampler"]


class ElasticSampler(Sampler[int]):
    """Deals the samples of an epoch that are not done yet over all ranks, anew after each reset.

    Give it to the `TorchState`, call `record_batch` for each batch, and commit the state between steps only: between a
    batch's record and its `optimizer.step()` the state holds one without the other. All ranks take batches of one size.

    Args:
        dataset: its length is what counts, the same on all ranks.
        shuffle: whether samples come in an order drawn from `seed` and the epoch.
        seed: the same on all ranks.

    Raises ValueError before `hvd.init()`. No method communicates.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int = 0) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.processed_num = 0
        self._is_resuming = False
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Begin epoch number `epoch` from its first sample, at the end of the epoch before or at the top of this one.

        After a reset the first call with the epoch that is under way changes nothing: the epoch goes on. (Horovod
        begins it again, so that scripts which call this at the top of an epoch repeat samples.)
        """
        if self._is_resuming and epoch == self.epoch:
            return
        self.epoch = epoch
        self.processed_num = 0
        self._is_resuming = False
        self.reset()

    def record_batch(self, batch_idx: int, batch_size: int) -> None:
        """Note that every rank has trained on its next `batch_size` samples; `batch_idx` is not used, as in Horovod."""
        self.processed_num = min(len(self.dataset), self.processed_num + batch_size * self.num_replicas)

    def count(self, batch_size: int) -> int:
        """How many of this rank's next `batch_size` samples, from the first that is not recorded, are no fillers.

        Fillers are last: of `batch` the real samples are `batch[:count]`, all or all but one. As the weight of
        `optimizer.weigh(loss, count)`, the loss being their mean, it makes the gradient exactly that of one process
        on the union of the ranks' batches; a rank with no real sample counts 0.
        """
        taken = (self.processed_num - self._start) // self.num_replicas
        return max(0, min(batch_size, self._real - taken))

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of samples done, the same on all ranks; Horovod's keys."""
        return {"epoch": self.epoch, "processed_num": self.processed_num}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict()`, whatever the number of ranks was."""
        self.epoch = state_dict["epoch"]
        self.processed_num = min(len(self.dataset), state_dict["processed_num"])
        self._is_resuming = True
        self.reset()

    def reset(self) -> None:
        """Deal what is left of the epoch over the ranks that there are now."""
        self.rank, self.num_replicas = self._place()
        indices = list(range(len(self.dataset)))
        if self.shuffle:
            random.Random(self.seed + self.epoch).shuffle(indices)
        self._start = self.processed_num
        self.remaining_indices = indices[self._start :]
        self.indices = self.remaining_indices[self.rank :: self.num_replicas]
        self._real = len(self.indices)
        self.num_samples = -(-len(self.remaining_indices) // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas
        if self._real < self.num_samples:
            self.indices.append(indices[-1])

    def __iter__(self) -> Iterator[int]:
        is_done = self.processed_num >= len(self.dataset)
        if is_done and not self._is_resuming:
            self.processed_num = 0  # a script without set_epoch() goes through the same order again
        self._is_resuming = False
        if self.processed_num != self._start:
            self.reset()
        return iter(self.indices)

    def __len__(self) -> int:
        """Samples of this rank in the pass that is under way, fillers included: on all ranks the same number."""
        return self.num_samples

    def _place(self) -> tuple[int, int]:
        world = require_world()
        return world.rank, world.size
