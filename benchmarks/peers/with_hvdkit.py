"""hvdkit, as a user's script calls it: every strategy, all in one job."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import hvdkit as hvd
from benchmarks.collective import ROOT, Buffers
from benchmarks.peers.serve import Call, Prepare, serve
from hvdkit import collectives
from hvdkit.runtime import require_world


def strategies() -> list[str]:
    """The names that `strategy=` takes; Horovod's engine alone where there is no such keyword."""
    if "strategy" not in inspect.signature(hvd.allreduce_).parameters:
        return ["horovod"]
    return [*(name for name in collectives.ALGORITHMS if name != "auto"), "auto"]


def prepare(buffers: Buffers, keywords: Mapping[str, Any]) -> Call:
    """The call by hvdkit's public names."""
    send, name = buffers.send, f"bench.{buffers.collective}.{buffers.send.numel()}"
    return {
        "allreduce": lambda: hvd.allreduce_(send, op=hvd.Sum, name=name, **keywords),
        "broadcast": lambda: hvd.broadcast_(send, ROOT, name=name, **keywords),
        "allgather": lambda: hvd.allgather(send, name=name, **keywords),
        "reducescatter": lambda: hvd.reducescatter(send, op=hvd.Sum, name=name, **keywords),
    }[buffers.collective]


def contenders(prefix: str) -> dict[str, Prepare]:
    """One contender per strategy, named `PREFIX STRATEGY`."""
    names = strategies()
    if names == ["horovod"]:
        return {f"{prefix} horovod": lambda buffers: prepare(buffers, {})}
    return {f"{prefix} {name}": lambda buffers, name=name: prepare(buffers, {"strategy": name}) for name in names}


if __name__ == "__main__":
    hvd.init()
    serve(require_world().comm, contenders(sys.argv[1]))
