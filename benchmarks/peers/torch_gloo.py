"""Peer: torch.distributed with its Gloo backend, which carries DDP on CPUs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch.distributed as dist
from mpi4py import MPI

from benchmarks.collective import ROOT, Buffers
from benchmarks.peers.serve import Call, serve

_HOST = "127.0.0.1"


def prepare(buffers: Buffers) -> Call:
    """The call, blocking, into the buffers that are there."""
    send, receive = buffers.send, buffers.receive

    def call() -> None:
        if buffers.collective == "allreduce":
            dist.all_reduce(receive)
        elif buffers.collective == "broadcast":
            dist.broadcast(receive, ROOT)
        elif buffers.collective == "allgather":
            dist.all_gather_into_tensor(receive, send)
        else:
            dist.reduce_scatter_tensor(receive, send)

    return call


def start(comm: MPI.Intracomm) -> None:
    """Gloo among the ranks of `comm`, which meet at a port that the system picks."""
    store = dist.TCPStore(_HOST, 0, comm.size, is_master=True, wait_for_workers=False) if comm.rank == 0 else None
    port = comm.bcast(store.port if store is not None else None)
    if store is None:
        store = dist.TCPStore(_HOST, port, comm.size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)


if __name__ == "__main__":
    start(MPI.COMM_WORLD)
    serve(MPI.COMM_WORLD, {sys.argv[1]: prepare})
    MPI.COMM_WORLD.Barrier()
    dist.destroy_process_group()
