"""`join()`: a rank that has no more data stays until all have none, and brings zeros to what the others do.

Horovod's engine serves its own operations in the background. Direct collectives this rank attends one by one: each
begins with a meeting, from which a rank without a wish learns what the others do.
"""

from hvdkit.collectives.connect import direct_collectives, why_no_direct
from hvdkit.runtime import require_world
from hvdkit.runtime.dropin.functions import begin_join, end_join


def join(device: int = -1) -> int:
    """Wait until all ranks have joined; until then take part in their reductions with zeros. Collective.

    `Average` goes on dividing by all ranks, as in Horovod. Returns the rank that joined last.
    """
    world = require_world()
    if why_no_direct(world) is not None:
        return end_join(begin_join(device))
    direct = direct_collectives(world)
    handle = begin_join(device)
    while direct.serve():
        pass
    direct.exchanges.clear_optimizers()  # they agree anew
    return end_join(handle)
