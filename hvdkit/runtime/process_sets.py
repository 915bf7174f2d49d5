"""Horovod's process sets, asked for by their ranks: Horovod itself refuses to add a set that is there already."""

from collections.abc import Sequence
from typing import Any

from hvdkit.errors import HvdkitError
from hvdkit.runtime.engine import horovod


def process_set_of(ranks: Sequence[int]) -> Any:
    """The `ProcessSet` of these ranks, added if there is none. Collective over all ranks of the world.

    Raises HvdkitError on all ranks where sets cannot be added.
    """
    library = horovod("horovod.common.process_sets")
    for number, members in library._basics._get_process_set_ids_and_ranks().items():
        if sorted(members) == sorted(ranks):
            found = library.ProcessSet(ranks)
            found.process_set_id = number
            return found
    try:
        return library.add_process_set(list(ranks))
    except (RuntimeError, ValueError) as error:
        raise HvdkitError(f'process sets cannot be added: {error}; use hvd.init(process_sets="dynamic")') from error
