"""Not a peer but the bound's other half: the memory bandwidth of all ranks at once, by the triad a = b + s c.

Source: J. D. McCalpin, "Memory bandwidth and machine balance in current high performance computers" (STREAM), which
counts three times the bytes of an array (two read, one written) and no line that a write fetches first. The arrays
have a size of their own, far beyond the caches, whatever the message's (`TRIAD_ARRAY_BYTES`).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from mpi4py import MPI

from benchmarks.collective import ITEM_BYTES, TRIAD_ARRAY_BYTES, Buffers
from benchmarks.peers.serve import Call, serve


def main() -> None:
    """Serve as a contender whose collective is always the triad."""
    b, c = torch.ones(TRIAD_ARRAY_BYTES // ITEM_BYTES), torch.ones(TRIAD_ARRAY_BYTES // ITEM_BYTES)
    a = torch.zeros(TRIAD_ARRAY_BYTES // ITEM_BYTES)

    def prepare(buffers: Buffers) -> Call:
        return lambda: torch.add(b, c, alpha=3.0, out=a)

    serve(MPI.COMM_WORLD, {sys.argv[1]: prepare})


if __name__ == "__main__":
    main()
