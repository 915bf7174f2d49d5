"""hvdkit, the strategies that it is told of, as a user's script calls them."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import hvdkit as hvd
from benchmarks.collective import ROOT, Buffers
from benchmarks.peers import HVDKIT, SHARED
from benchmarks.peers.serve import Call, Prepare, serve
from hvdkit.collectives import direct_collectives
from hvdkit.runtime import require_world


def prepare_by_public_name(strategy: str | None) -> Prepare:
    """Calls as in a user's script; `strategy` None is the names' default, Horovod's engine."""
    keywords = {} if strategy is None else {"strategy": strategy}

    def prepare(buffers: Buffers) -> Call:
        send, name = buffers.send, f"bench.{buffers.collective}.{buffers.send.numel()}"
        # hvdkit's own algorithms write into memory that is there, as Open MPI and Gloo do; Horovod's engine cannot.
        into = {} if strategy is None else {"out": buffers.receive}
        calls: dict[str, Call] = {
            "allreduce": lambda: hvd.allreduce_(send, op=hvd.Sum, name=name, **keywords),
            "broadcast": lambda: hvd.broadcast_(send, ROOT, name=name, **keywords),
            "allgather": lambda: hvd.allgather(send, name=name, **keywords, **into),
            "reducescatter": lambda: hvd.reducescatter(send, op=hvd.Sum, name=name, **keywords),
        }
        return calls[buffers.collective]

    return prepare


def contenders(strategies: Sequence[str]) -> dict[str, Prepare]:
    """One contender per strategy, named `hvdkit STRATEGY`; "shared" is "auto" on buffers in shared memory."""
    means = {"horovod": None, SHARED: "auto"}
    return {f"{HVDKIT} {word}": prepare_by_public_name(means.get(word, word)) for word in strategies}


def what_auto_is(contender: str, buffers: Buffers) -> str | None:
    """The algorithm that hvdkit chose for this message."""
    if not contender.endswith(" auto"):
        return None
    kind = {"allreduce": "all_reduce", "allgather": "all_gather", "reducescatter": "reduce_scatter"}
    algorithms = direct_collectives(require_world()).algorithms
    return algorithms.resolve(kind.get(buffers.collective, buffers.collective), buffers.send.nbytes, "auto")


if __name__ == "__main__":
    hvd.init()
    words = sys.argv[2:]
    zeros = hvd.empty_shared if words == [SHARED] else torch.zeros
    serve(require_world().comm, contenders(words), what_auto_is, zeros)
