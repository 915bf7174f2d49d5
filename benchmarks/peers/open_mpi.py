"""Peer: the MPI library's own collectives, called by mpi4py on the buffers as they are."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mpi4py import MPI

from benchmarks.collective import ROOT, Buffers
from benchmarks.peers.serve import Call, serve


def prepare(buffers: Buffers, counts_below_bytes: int = 0) -> Call:
    """The call; reduce-scatter below `counts_below_bytes` by MPI_Reduce_scatter, which has other algorithms."""
    comm: Any = MPI.COMM_WORLD
    send, receive = buffers.send.numpy(), buffers.receive.numpy()

    def allreduce() -> None:
        comm.Allreduce(MPI.IN_PLACE, receive)

    def broadcast() -> None:
        comm.Bcast(receive, root=ROOT)

    def allgather() -> None:
        comm.Allgather(send, receive)

    def reducescatter() -> None:
        if send.nbytes < counts_below_bytes:
            comm.Reduce_scatter(send, receive)
        else:
            comm.Reduce_scatter_block(send, receive)

    return {"allreduce": allreduce, "broadcast": broadcast, "allgather": allgather, "reducescatter": reducescatter}[
        buffers.collective
    ]


if __name__ == "__main__":
    name = sys.argv[1]
    counts_below = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    serve(MPI.COMM_WORLD, {name: lambda buffers: prepare(buffers, counts_below)})
