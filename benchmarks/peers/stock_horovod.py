"""Peer: Horovod as it comes, `import horovod.torch`, default settings, MPI started by Horovod itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import horovod.torch as horovod

from benchmarks.collective import ROOT, Buffers
from benchmarks.peers.serve import Call, serve


def prepare(buffers: Buffers) -> Call:
    """The call, by its plain name; Horovod has no in-place all-gather and reduce-scatter, and allocates the result."""
    send, name = buffers.send, f"bench.{buffers.collective}.{buffers.send.numel()}"
    return {
        "allreduce": lambda: horovod.allreduce_(send, op=horovod.Sum, name=name),
        "broadcast": lambda: horovod.broadcast_(send, ROOT, name=name),
        "allgather": lambda: horovod.allgather(send, name=name),
        "reducescatter": lambda: horovod.reducescatter(send, op=horovod.Sum, name=name),
    }[buffers.collective]


if __name__ == "__main__":
    horovod.init()
    # Only now: mpi4py would start MPI itself.
    from mpi4py import MPI

    serve(MPI.COMM_WORLD, {sys.argv[1]: prepare})
    MPI.COMM_WORLD.Barrier()
    horovod.shutdown()
