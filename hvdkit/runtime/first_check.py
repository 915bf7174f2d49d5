"""The check that `hvdkit horovod build --verify later` left to the first `init()` with more than one rank."""

from collections.abc import Callable

import torch

from hvdkit.errors import BuildError
from hvdkit.horovod_build.unverified import is_unverified, mark_verified
from hvdkit.runtime.agreement import raise_together, share_object
from hvdkit.runtime.engine import HOW_TO_GET_HOROVOD, horovod
from hvdkit.runtime.world import World

_ELEMENTS = 1000


def check_unverified(world: World, allreduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
    """All-reduce once and compare with what must come out, if the installed Horovod was never checked. Collective.

    Rank 0 looks for the mark and clears it, since ranks may share the file system, or see it with a delay; without a
    mark this costs one small broadcast. Raises BuildError on all ranks if any rank got a wrong result; then the mark
    stays. `allreduce` sums over the ranks; the default is Horovod's.
    """
    if world.size == 1 or not share_object(world, world.is_root and is_unverified()):
        return
    reduced = (allreduce or _horovod_sum)(torch.full((_ELEMENTS,), float(world.rank + 1)))
    expected = world.size * (world.size + 1) / 2
    error = None
    if reduced.shape != (_ELEMENTS,) or not bool((reduced == expected).all()):
        error = BuildError(
            "Horovod was installed with `--verify later`, and its first all-reduce, over "
            f"{world.size} ranks ({world.backend}), is wrong: {float(reduced.flatten()[0])} instead of {expected}; "
            f"see `hvdkit doctor`, and {HOW_TO_GET_HOROVOD} to build it again"
        )
    raise_together(world, error)
    if world.is_root:
        mark_verified()


def _horovod_sum(tensor: torch.Tensor) -> torch.Tensor:
    engine = horovod()
    reduced: torch.Tensor = engine.allreduce(tensor, op=engine.Sum, name="hvdkit.first_check")
    return reduced
