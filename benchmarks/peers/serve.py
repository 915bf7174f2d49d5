"""The side of a job's ranks in `benchmarks/turns.py`: carry out commands, and time collectives alike for every peer.

Rank 0 reads a line of JSON and passes it on by MPI, which every peer has: ranks are started by mpirun, and mpi4py does
barriers and the sums of times, even where the collective is another library's. Commands:
`{"do": "check", "contender", "collective", "bytes"}` compares one result with the closed form, and answers with the
contender's note; `{"do": "time", ..., "warmup", "repeats"}` answers with `repeats` times in seconds, each the mean
over ranks.

Before each call every rank writes its buffers anew, as a backward pass does: the cache lines are then its own, and
not shared with the ranks that read them last, which is part of what a collective has to cope with. A turn begins with
calls that do not count, for a while: the kernel needs it to give ranks that were stopped a core each.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch

from benchmarks.collective import Buffers, Zeros, expected, given
from benchmarks.turns import MARK

_SETTLING_S = 0.03

Call = Callable[[], "torch.Tensor | None"]
"""Carries out the collective once; returns the result if that is not in `Buffers.receive`."""
Prepare = Callable[[Buffers], Call]
"""Raises ValueError where the contender does not have the collective."""
Note = Callable[[str, Buffers], "str | None"]
"""What readers should know of this contender's call, such as the algorithm that it chose."""


def serve(comm: Any, contenders: Mapping[str, Prepare], note: Note = lambda contender, buffers: None,
          zeros: Zeros = torch.zeros) -> None:  # fmt: skip
    """Answer the commands that rank 0 of `comm` (mpi4py) reads, until its input ends; `zeros` makes the buffers."""
    # Torch's own threads, which fill buffers, would go on spinning on the cores while the collective runs.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // comm.size))
    pids = comm.gather(os.getpid())
    _answer(comm, {"pids": pids, "contenders": list(contenders)})
    session = Session(comm, contenders, note, zeros)
    while True:
        line = sys.stdin.readline() if comm.rank == 0 else None
        command = comm.bcast(json.loads(line) if line else None)
        if command is None:
            return
        answer: Any = None
        error: str | None = None
        try:
            answer = session.do(**command)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        errors = comm.allgather(error)
        _answer(comm, {"error": _in_words(errors)} if any(errors) else {"answer": answer})


class Session:
    """Keeps the buffers and the prepared call of one message size, since the next command is mostly about the same."""

    def __init__(self, comm: Any, contenders: Mapping[str, Prepare], note: Note, zeros: Zeros = torch.zeros) -> None:
        self._zeros = zeros
        self._comm = comm
        self._note = note
        self._contenders = contenders
        self._buffers: Buffers | None = None
        self._message: tuple[str, int] | None = None
        self._calls: dict[str, Call] = {}

    def do(self, *, do: str, contender: str, collective: str, bytes: int, **more: int) -> Any:
        if self._message != (collective, bytes):
            self._calls.clear()
            self._buffers = None  # the old ones go before the new ones come
            self._buffers = Buffers.allocate(collective, bytes, self._comm.size, self._zeros)
            self._message = (collective, bytes)
        assert self._buffers is not None
        if contender not in self._calls:
            self._calls[contender] = self._contenders[contender](self._buffers)
        call = self._calls[contender]
        if do == "time":
            return self._time(call, self._buffers, **more)
        self._check(call, self._buffers)
        return self._note(contender, self._buffers)

    def _check(self, call: Call, buffers: Buffers) -> None:
        buffers.receive.fill_(-1)
        buffers.send.copy_(given(buffers.send.numel(), self._comm.rank))
        result = call()
        wanted = expected(buffers, self._comm.rank, self._comm.size)
        got = buffers.receive if result is None else result
        if not torch.equal(got.reshape(-1), wanted):
            wrong = "another shape" if got.numel() != wanted.numel() else f"{int((got != wanted).sum())} wrong elements"
            raise ValueError(f"the result of {buffers.collective} has {wrong} of {wanted.numel()}")

    def _time(self, call: Call, buffers: Buffers, *, warmup: int, repeats: int) -> list[float]:
        settled = time.perf_counter() + _SETTLING_S
        while self._comm.bcast(warmup > 0 or time.perf_counter() < settled):
            self._seconds(call, buffers)
            warmup -= 1
        times = numpy.array([self._seconds(call, buffers) for _ in range(repeats)])
        mean: list[float] = (self._comm.allreduce(times) / self._comm.size).tolist()
        return mean

    def _seconds(self, call: Call, buffers: Buffers) -> float:
        buffers.send.fill_(self._comm.rank + 1)
        self._comm.Barrier()
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        del result  # its memory is free again for the next call
        return end - start


def _in_words(errors: Sequence[str | None]) -> str:
    """All ranks' errors; what all of them say is said once."""
    if len(set(errors)) == 1:
        return str(errors[0])
    return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(errors) if text)


def _answer(comm: Any, answer: Mapping[str, Any]) -> None:
    if comm.rank == 0:
        sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")
        sys.stdout.flush()
