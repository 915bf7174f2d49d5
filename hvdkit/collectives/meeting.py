"""Before ranks do a collective they compare what each of them is about to do.

Every direct collective begins with one all-reduce of nine numbers, always the same call on the same communicator, so
that ranks which want different things meet there, learn it together, and raise an error that names what each rank
asked, instead of hanging or mixing their data. It costs one small message (`hvdkit collectives` prints how long).

A rank that has called `join()` comes to the meetings too, learns what the others do, and brings zeros.
"""

import itertools
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from hvdkit.collectives.reduction import MOVABLE
from hvdkit.errors import CollectiveMismatchError

KINDS = ("all_reduce", "all_reduce_many", "reduce_scatter", "reduce_scatter_into", "all_gather", "all_gather_into",
         "broadcast", "reduce", "by_levels", "empty_shared", "shared_by_node", "gather_objects", "ready",
         "mistake")  # fmt: skip
_OPS = ("sum", "average", "min", "max", "product")
_ABSENT = np.iinfo(np.int64).min + 1


@dataclass(eq=False)
class Call:
    """What a rank is about to do."""

    kind: str
    algorithm: str = "mpi"
    op: str = "sum"
    dtype: torch.dtype = torch.uint8
    count: int = 0
    """Elements; of one row where ranks bring different numbers of rows; tensors where there are many."""
    is_weighted: bool = False
    root: int = 0
    name: str = ""
    shape: tuple[int, ...] = ()
    rows: int = 0
    """Of an all-gather, what this rank brings, in which ranks may differ."""
    numbers: npt.NDArray[np.int64] | None = None
    """What the meeting compares, made at the first one: `encode()` and the rows, and their negatives, in turns, and a
    0."""

    def encode(self, algorithms: tuple[str, ...]) -> tuple[int, int, int]:
        """Three numbers from which `decode` makes all but name and shape."""
        what = KINDS.index(self.kind)
        what = what * len(algorithms) + algorithms.index(self.algorithm)
        what = what * len(_OPS) + _OPS.index(self.op)
        what = what * len(MOVABLE) + MOVABLE.index(self.dtype)
        rows = self.shape[1:] if self.kind == "all_gather" else self.shape
        name = zlib.crc32(f"{self.name}{rows}".encode())
        return what * 2 + self.is_weighted, self.count, self.root << 32 | name

    @classmethod
    def decode(cls, numbers: tuple[int, int, int], algorithms: tuple[str, ...]) -> "Call":
        """The inverse of `encode`."""
        what, is_weighted = divmod(numbers[0], 2)
        what, dtype = divmod(what, len(MOVABLE))
        what, op = divmod(what, len(_OPS))
        kind, algorithm = divmod(what, len(algorithms))
        return cls(KINDS[kind], algorithms[algorithm], _OPS[op], MOVABLE[dtype], numbers[1], bool(is_weighted),
                   numbers[2] >> 32)  # fmt: skip

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        if self.kind in ("gather_objects", "ready", "mistake"):
            return f"{self.kind}{name}"
        dtype = str(self.dtype).removeprefix("torch.")
        details = [f"{dtype} {self.shape}", self.algorithm]
        if self.kind in ("all_reduce", "all_reduce_many", "reduce_scatter", "reduce_scatter_into", "reduce"):
            details.append(f"weighted {self.op}" if self.is_weighted else self.op)
        if self.kind in ("broadcast", "reduce"):
            details.append(f"root {self.root}")
        return f"{self.kind}{name} of {', '.join(details)}"


class Met(NamedTuple):
    """What a meeting found out beside that all want the same."""

    has_joined: bool
    """Whether a rank that has called join() is among them."""
    has_equal_rows: bool
    """Whether all bring as many rows."""


_ALL_ALIKE = Met(has_joined=False, has_equal_rows=True)


class Meeting:
    """Meetings of the ranks of `comm`; `algorithms` names those that calls may use."""

    def __init__(self, mpi: Any, comm: Any, algorithms: tuple[str, ...]) -> None:
        self._comm, self._algorithms = comm, algorithms
        self._numbers = np.zeros(9, dtype=np.int64)
        self._max, self._in_place = mpi.MAX, mpi.IN_PLACE

    def meet(self, call: Call) -> Met:
        """Return when all ranks are here with the same `call`.

        Collective. Raises CollectiveMismatchError on all ranks, with what each asked, if they are not.
        """
        wanted = call.numbers
        if wanted is None:
            pairs = [(number, -number) for number in (*call.encode(self._algorithms), call.rows)]
            call.numbers = wanted = np.array([*itertools.chain(*pairs), 0], dtype=np.int64)
        numbers = self._numbers
        numbers[:] = wanted
        self._comm.Allreduce(self._in_place, numbers, self._max)
        if numbers.tobytes() == wanted.tobytes():
            return _ALL_ALIKE
        if numbers[:6].tobytes() != wanted[:6].tobytes():
            self.explain(str(call))
        return Met(has_joined=bool(numbers[-1]), has_equal_rows=False)

    def attend(self) -> Call | None:
        """Join a meeting without a wish; returns what the others do, None if nobody has a wish. Collective.

        Raises as `meet` does.
        """
        numbers = self._numbers
        numbers.fill(_ABSENT)
        numbers[-1] = 1
        self._comm.Allreduce(self._in_place, numbers, self._max)
        high, low = numbers[0:6:2].tolist(), (-numbers[1:6:2]).tolist()
        if high[0] == _ABSENT:
            return None
        if high != low:
            self.explain("nothing (it has called join())")
        return Call.decode((high[0], high[1], high[2]), self._algorithms)

    def explain(self, mine: str) -> NoReturn:
        """Raise CollectiveMismatchError with what each rank asked. Collective."""
        everyone = self._comm.allgather(mine)
        wishes: dict[str, list[int]] = {}
        for rank, wish in enumerate(everyone):
            wishes.setdefault(wish, []).append(rank)
        lines = [f"  rank {', '.join(map(str, ranks))}: {wish}" for wish, ranks in wishes.items()]
        raise CollectiveMismatchError(
            "ranks came to the same point with different collectives; every rank must call the same ones in the same "
            "order, with the same dtype, shape and operation:\n" + "\n".join(lines)
        )
