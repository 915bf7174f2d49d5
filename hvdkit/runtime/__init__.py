"""The only package that imports horovod or mpi4py: process start-up, the `World`, and both libraries' quirks.

Other packages take the `World` as an argument; only the module-level functions that mirror Horovod's ask
`current_world()`.
"""

from hvdkit.contract import RESUME_STATUS
from hvdkit.runtime.agreement import gather_objects, raise_together, share_object, together
from hvdkit.runtime.failure import die, end_job_on_error, fail_job
from hvdkit.runtime.groups import RankGroup, alone, divide_ranks
from hvdkit.runtime.launcher import LaunchInfo, launch_info
from hvdkit.runtime.startup import current_world, end_with, init, is_initialized, require_world, shutdown
from hvdkit.runtime.watch.limits import limit_hangs
from hvdkit.runtime.world import World

__all__ = [
    "RESUME_STATUS",
    "LaunchInfo",
    "RankGroup",
    "World",
    "alone",
    "current_world",
    "die",
    "divide_ranks",
    "end_job_on_error",
    "end_with",
    "fail_job",
    "gather_objects",
    "init",
    "is_initialized",
    "launch_info",
    "limit_hangs",
    "raise_together",
    "require_world",
    "share_object",
    "shutdown",
    "together",
]
