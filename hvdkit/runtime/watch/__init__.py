"""What Horovod's tools show of its engine, shown of hvdkit's own collectives too: timeline, stalls, variables.

Horovod's timeline and stall check live in its engine and see nothing of a collective that runs on mpi4py. `Watch` is
told of each of those when it begins and ends, and answers to the same environment variables.
"""

from hvdkit.runtime.watch.collectives import Watch
from hvdkit.runtime.watch.open_collective import Begun
from hvdkit.runtime.watch.variables import ignored_variables, warn_of_ignored_variables

__all__ = ["Begun", "Watch", "ignored_variables", "warn_of_ignored_variables"]
