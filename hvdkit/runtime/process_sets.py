"""Horovod's process sets, asked for by their ranks: Horovod itself refuses to add a set that is there already."""

from collections.abc import Sequence
from typing import Any

from hvdkit.errors import HvdkitError
from hvdkit.runtime.engine import horovod


def process_set_of(ranks: Sequence[int]) -> tuple[Any, bool]:
    """The `ProcessSet` of these ranks, and whether it was added because there was none. Collective over all ranks.

    Raises HvdkitError on all ranks where sets cannot be added.
    """
    library = horovod("horovod.common.process_sets")
    for number, members in library._basics._get_process_set_ids_and_ranks().items():
        if sorted(members) == sorted(ranks):
            found = library.ProcessSet(ranks)
            found.process_set_id = number
            return found, False
    try:
        return library.add_process_set(list(ranks)), True
    except (RuntimeError, ValueError) as error:
        raise HvdkitError(f'process sets cannot be added: {error}; use hvd.init(process_sets="dynamic")') from error


def remove_process_set(process_set: Any) -> None:
    """Remove a set that `process_set_of` added. Collective over all ranks of the world."""
    horovod("horovod.common.process_sets").remove_process_set(process_set)
