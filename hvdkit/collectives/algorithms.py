"""The algorithms of a group by name, and which of them can do what here."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvdkit.collectives.group import Group
from hvdkit.collectives.hierarchical import Hierarchical
from hvdkit.collectives.horovod_engine import HorovodAlgorithm
from hvdkit.collectives.levels import Levels
from hvdkit.collectives.mpi_library import MpiLibrary
from hvdkit.collectives.reduction import Reduction
from hvdkit.collectives.ring import Ring
from hvdkit.collectives.shared_memory import SharedMemory
from hvdkit.collectives.tree import Tree
from hvdkit.collectives.window import NoRoomError

KINDS: dict[str, Any] = {
    "horovod": HorovodAlgorithm,
    "mpi": MpiLibrary,
    "ring": Ring,
    "tree": Tree,
    "shared_memory": SharedMemory,
    "hierarchical": Hierarchical,
}
NAMES = tuple(KINDS)
STRATEGIES = (*NAMES, "auto")
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")

_log = logging.getLogger("hvdkit")


class Algorithms:
    """All algorithms that work among the ranks of `group`. Collective, as is `close`."""

    def __init__(self, group: Group, horovod: HorovodAlgorithm) -> None:
        self.group = group
        self.choose: Callable[[str, int], str] = lambda collective, nbytes: "mpi"
        """(collective, bytes) -> the name of the algorithm that "auto" means."""
        self._has_warned = False
        self.reasons: dict[str, str] = {}
        """Why an algorithm is not to be had here."""
        self._made: dict[str, Any] = {"horovod": horovod, "mpi": MpiLibrary(group), "ring": Ring(group),
                                      "tree": Tree(group)}  # fmt: skip
        if group.is_one_node:
            self.reasons["hierarchical"] = "all ranks are on one node, where it would be shared_memory"
            self._add("shared_memory", SharedMemory)
        else:
            self.reasons["shared_memory"] = "the ranks are on several nodes; hierarchical uses it within each"
            self._add("hierarchical", Hierarchical)

    def _add(self, name: str, kind: Any) -> None:
        made = problem = None
        try:
            made = kind(self.group)
        except NoRoomError as error:
            problem = str(error)
        problems = [text for text in self.group.comm.allgather(problem) if text]
        if not problems:
            self._made[name] = made
            return
        if made is not None:
            made.close()
        self.reasons[name] = problems[0]
        if self.group.index == 0:
            _log.warning("%s collectives are not used: %s", name, problems[0])

    def names(self, collective: str) -> list[str]:
        """The algorithms that can do `collective` here, Horovod's engine first."""
        return [name for name, made in self._made.items() if hasattr(made, collective)]

    def resolve(self, collective: str, nbytes: int, strategy: str) -> str:
        """The name of the algorithm that `strategy` means. Raises ValueError with those that are valid."""
        if strategy == "auto":
            return self.choose(collective, nbytes)
        if strategy not in self._made or not hasattr(self._made[strategy], collective):
            if strategy in self.reasons:
                why = self.reasons[strategy]
            else:
                why = f"it does not offer {collective}" if strategy in NAMES else "there is no such algorithm"
            valid = ", ".join(["auto", *self.names(collective)])
            raise ValueError(f"strategy={strategy!r}: {why}; for {collective} use one of {valid}")
        return strategy

    def method(self, collective: str, name: str) -> Callable[..., None]:
        """The method of algorithm `name` for `collective`."""
        method: Callable[..., None] = getattr(self._made[name], collective)
        return method

    @property
    def levels(self) -> Levels | None:
        """The two levels of the group where nodes have several ranks."""
        is_flat = max(map(len, self.group.members)) == 1
        return None if is_flat or "hierarchical" not in self._made else self._made["hierarchical"].levels

    def all_reduce_many(self, name: str, tensors: Sequence[torch.Tensor], reduction: Reduction) -> None:
        """All-reduce `tensors` by algorithm `name`, together where it can."""
        made = self._made[name]
        if hasattr(made, "all_reduce_many"):
            made.all_reduce_many(tensors, reduction)
            return
        for tensor in tensors:
            made.all_reduce(tensor, reduction)

    def empty_shared(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeros in the node's shared memory where that algorithm can be used and there is room. Collective."""
        if "shared_memory" in self._made:
            try:
                tensor: torch.Tensor = self._made["shared_memory"].tensors.empty(shape, dtype)
            except NoRoomError as error:
                if self.group.index == 0 and not self._has_warned:
                    self._has_warned = True
                    _log.warning("empty_shared: an ordinary tensor, for want of room: %s", error)
            else:
                return tensor
        return torch.zeros(shape, dtype=dtype)

    def shared_by_node(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """One tensor of zeros in the memory of a single node. Collective; raises NoRoomError on all ranks."""
        if "shared_memory" not in self._made:
            raise NoRoomError(self.reasons["shared_memory"])
        tensor: torch.Tensor = self._made["shared_memory"].tensors.one_for_all(shape, dtype)
        return tensor

    def close(self) -> None:
        """Free windows and communicators. Collective."""
        for made in self._made.values():
            if hasattr(made, "close"):
                made.close()


def check_strategy(strategy: str) -> None:
    """Raise ValueError if no algorithm has that name."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is not one of {', '.join(STRATEGIES)}")
