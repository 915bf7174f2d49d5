"""Collectives by Horovod's engine: negotiated, asynchronous, fused; NCCL on GPUs, MPI or Gloo on CPUs.

Source: A. Sergeev, M. Del Balso, "Horovod: fast and easy distributed deep learning in TensorFlow",
arXiv:1802.05799. A small all-reduce takes one cycle of the engine, about 1 ms by default.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives.interface import ReduceOp, Work
from hvdkit.collectives.queue import Queue, Started
from hvdkit.collectives.reduction import Reduction
from hvdkit.runtime.dropin import operations
from hvdkit.runtime.engine import horovod
from hvdkit.runtime.world import World


class HorovodEngine:
    """Horovod's engine over all ranks of `world`, or over those of `process_set` (a Horovod `ProcessSet`)."""

    def __init__(self, world: World, process_set: Any = None) -> None:
        self._process_set = horovod().global_process_set if process_set is None else process_set
        self.size: int = world.size if process_set is None else process_set.size()
        self.index: int = world.rank if process_set is None else process_set.rank()
        self._queue = Queue()

    def all_reduce_async_(
        self, tensor: torch.Tensor, name: str, *, op: ReduceOp = "sum", prescale: float = 1.0
    ) -> Work:
        """See `Collectives`. Ranks may call in any order: the engine negotiates by `name`."""
        engine_op = getattr(horovod(), op.capitalize())
        handle = operations.allreduce_async_(
            tensor, name=name, op=engine_op, prescale_factor=prescale, process_set=self._process_set
        )
        return _EngineWork(handle)

    def all_gather(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """See `Collectives`."""
        gathered: torch.Tensor = operations.allgather(
            tensor.contiguous(), name=name, process_set=self._process_set
        )  # fmt: skip
        return gathered

    def all_gather_async(self, tensor: torch.Tensor, name: str) -> Work:
        """The same without waiting; ranks may call in any order, as the engine negotiates by `name`. Collective."""
        return _EngineWork(operations.allgather_async(tensor.contiguous(), name=name, process_set=self._process_set))

    def reduce_scatter_into(
        self, data: torch.Tensor, out: torch.Tensor, counts: Sequence[int], name: str, *, op: ReduceOp = "sum",
        weight: float | None = None,
    ) -> None:  # fmt: skip
        """See `Collectives`. Where parts differ by more than one element the engine has an all-reduce only."""
        engine_op = getattr(horovod(), op.capitalize())
        weighed = data if weight is None else data * weight
        base, extra = divmod(data.numel(), self.size)
        if list(counts) == [base + (rank < extra) for rank in range(self.size)]:
            result = operations.reducescatter(weighed, op=engine_op, name=name, process_set=self._process_set)
        else:
            whole = operations.allreduce(weighed, op=engine_op, name=name, process_set=self._process_set)
            result = whole.split(list(counts))[self.index]
        out.copy_(result)

    def all_gather_into(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int], name: str) -> None:
        """See `Collectives`."""
        out.copy_(self.all_gather(part, name))

    def start(self, work: Callable[[], torch.Tensor]) -> Work:
        """See `Collectives`."""
        return Started(self._queue.start(work))

    def gather_objects(self, item: Any, name: str) -> list[Any]:
        """See `Collectives`. By sums, which go on after a rank has called Horovod's `join()`: its item is None."""
        pickled = pickle.dumps(item)
        words = torch.frombuffer(bytearray(pickled + b"\0" * (-len(pickled) % 4)), dtype=torch.int32)
        counts = torch.zeros(self.size, dtype=torch.int32)
        counts[self.index] = words.numel()
        self.all_reduce_async_(counts, f"{name}.counts").wait()
        whole = torch.zeros(int(counts.sum()), dtype=torch.int32)
        parts = whole.split(counts.tolist())
        parts[self.index].copy_(words)
        self.all_reduce_async_(whole, f"{name}.words").wait()
        # Only what a rank of this same job pickled is unpickled here.
        return [pickle.loads(part.numpy().tobytes()) if part.numel() else None for part in parts]

    def broadcast_(self, tensor: torch.Tensor, root: int, name: str) -> None:
        """Rank `root` of the group's `tensor` (contiguous) into everyone's."""
        process_set = self._process_set
        operations.broadcast_(tensor, process_set.ranks[root] if process_set.ranks else root, name=name,
                              process_set=process_set)  # fmt: skip


class _EngineWork:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def wait(self) -> torch.Tensor:
        result: torch.Tensor = operations.synchronize(self._handle)
        return result


class HorovodAlgorithm:
    """Horovod's engine as an `Algorithm`, one blocking call at a time; 16-bit sums are the engine's own."""

    name = "horovod"

    def __init__(self, engine: HorovodEngine) -> None:
        self._engine = engine

    def all_reduce(self, data: torch.Tensor, reduction: Reduction) -> None:
        """See `Algorithm`."""
        if reduction.factor(self._engine.index) != 1.0:
            data.mul_(reduction.factor(self._engine.index))  # the engine wants one prescale on all ranks
        self._engine.all_reduce_async_(data, "hvdkit.all_reduce", op=reduction.op).wait()
        reduction.finish(data)

    def all_gather(self, part: torch.Tensor, out: torch.Tensor, counts: Sequence[int]) -> None:
        """See `Algorithm`."""
        out.copy_(self._engine.all_gather(part, "hvdkit.all_gather"))

    def broadcast(self, data: torch.Tensor, root: int) -> None:
        """See `Algorithm`."""
        self._engine.broadcast_(data, root, "hvdkit.broadcast")
