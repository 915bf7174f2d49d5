"""`python -m hvdkit.launch.proof` on every rank: the ranks find each other and add up their numbers."""

import sys

import torch

from hvdkit.errors import HvdkitError
from hvdkit.runtime import end_job_on_error, init
from hvdkit.runtime.dropin.operations import allreduce
from hvdkit.runtime.engine import horovod


def main() -> int:
    """Collective; rank 0 prints one line. Ends the job with status 1 where a sum is wrong."""
    with end_job_on_error():
        world = init()
        total = allreduce(torch.full((1000,), float(world.rank + 1)), op=horovod().Sum, name="hvdkit.proof")
        if not bool((total == world.size * (world.size + 1) / 2).all()):
            raise HvdkitError(f"the sum over {world.size} ranks is wrong: {float(total[0])}")
    if world.is_root:
        hosts = "1 host" if world.cross_size == 1 else f"{world.cross_size} hosts"
        sys.stdout.write(f"hvdkit proof: {world.size} ranks on {hosts} over {world.backend}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
