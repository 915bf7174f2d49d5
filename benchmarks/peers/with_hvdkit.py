"""hvdkit, every strategy, all in one job: hvdkit itself keeps Horovod's engine quiet while others do the work."""

import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import hvdkit as hvd
from benchmarks.collective import ROOT, Buffers
from benchmarks.peers.serve import Call, Prepare, serve
from hvdkit.collectives import STRATEGIES, direct_collectives
from hvdkit.runtime import require_world


def prepare_by_public_name(strategy: str | None) -> Prepare:
    """Calls as in a user's script; `strategy` None is the names' default, Horovod's engine."""
    keywords = {} if strategy is None else {"strategy": strategy}

    def prepare(buffers: Buffers) -> Call:
        send, name = buffers.send, f"bench.{buffers.collective}.{buffers.send.numel()}"
        calls: dict[str, Call] = {
            "allreduce": lambda: hvd.allreduce_(send, op=hvd.Sum, name=name, **keywords),
            "broadcast": lambda: hvd.broadcast_(send, ROOT, name=name, **keywords),
            "allgather": lambda: hvd.allgather(send, name=name, **keywords),
            "reducescatter": lambda: hvd.reducescatter(send, op=hvd.Sum, name=name, **keywords),
        }
        return calls[buffers.collective]

    return prepare


def prepare_directly(strategy: str) -> Prepare:
    """Calls of what stands behind the public names, for an hvdkit whose names do not take `strategy=`."""

    def prepare(buffers: Buffers) -> Call:
        direct, send = direct_collectives(require_world()), buffers.send
        calls: dict[str, Call] = {
            "allreduce": lambda: direct.all_reduce_(send, strategy=strategy),
            "broadcast": lambda: direct.broadcast_(send, ROOT, strategy=strategy),
            "allgather": lambda: direct.all_gather(send, strategy=strategy),
            "reducescatter": lambda: direct.reduce_scatter(send, strategy=strategy),
        }
        return calls[buffers.collective]

    return prepare


def contenders(prefix: str) -> dict[str, Prepare]:
    """One contender per strategy, named `PREFIX STRATEGY`."""
    has_keyword = "strategy" in inspect.signature(hvd.allreduce_).parameters
    found = {}
    for strategy in STRATEGIES:
        if strategy == "horovod":
            prepare = prepare_by_public_name(None)
        else:
            prepare = prepare_by_public_name(strategy) if has_keyword else prepare_directly(strategy)
        found[f"{prefix} {strategy}"] = prepare
    return found


def what_auto_is(contender: str, buffers: Buffers) -> str | None:
    """The algorithm that hvdkit chose for this message."""
    if not contender.endswith(" auto"):
        return None
    kind = {"allreduce": "all_reduce", "allgather": "all_gather", "reducescatter": "reduce_scatter"}
    algorithms = direct_collectives(require_world()).algorithms
    return algorithms.resolve(kind.get(buffers.collective, buffers.collective), buffers.send.nbytes, "auto")


if __name__ == "__main__":
    hvd.init()
    serve(require_world().comm, contenders(sys.argv[1]), what_auto_is)
