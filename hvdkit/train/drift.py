"""Whether the ranks' parameters are still the same: a hash of each, compared over ranks every `--check-every` steps.

Ranks that take the same gradients step alike, to the bit; a fault of memory, a processor of another kind or a program
that changes weights on one rank makes them part ways, which no loss shows. Buffers are not compared: batch statistics,
say, are each rank's own. Of a model cut over the ranks (stage 3) only what every rank has whole is compared, and of
local updates the outer model.

XXH3 of 128 bits reads memory as fast as it comes (https://xxhash.com); a checksum of all ranks' sums in the
all-reduce itself would cost nothing more, but could not say where they differ.
"""

from collections import Counter
from collections.abc import Iterable

import torch
import xxhash

from hvdkit.errors import DivergenceError
from hvdkit.runtime import World, gather_objects
from hvdkit.runtime.words import ranks_in_words
from hvdkit.train.aggregation import Aggregation
from hvdkit.train.nonfinite import some


def check_drift(world: World, aggregation: Aggregation, model: torch.nn.Module, step: int) -> None:
    """Raise DivergenceError on all ranks unless their parameters have the same bits after `step` steps. Collective.

    Sends 16 bytes per rank, and the hash of each parameter where those differ.
    """
    if world.size == 1:
        return
    with aggregation.averaged():
        mine = hashes(aggregation.replicated(model))
    together = xxhash.xxh3_128_digest(b"".join(mine.values()))
    everyones = gather_objects(world, together)
    if len(set(everyones)) == 1:
        return
    usual = Counter(everyones).most_common(1)[0][0]  # of several as frequent ones that of the lowest rank
    majority = [rank for rank, digest in enumerate(everyones) if digest == usual]
    minority = [rank for rank in range(world.size) if rank not in majority]
    of_each = gather_objects(world, mine)
    right = of_each[majority[0]]
    names = [name for name in right if any(of_each[rank].get(name) != right[name] for rank in minority)]
    verb = "differs" if len(minority) == 1 else "differ"
    raise DivergenceError(
        f"step {step}: parameters have drifted apart: {ranks_in_words(minority)} {verb} from "
        f"{ranks_in_words(majority)} in {some(names)} ({len(names)} of {len(right)} parameters). Go on from a "
        "checkpoint before that step; if it happens again, look at what changes weights on single ranks, and at the "
        "memory of those hosts"
    )


def hashes(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, bytes]:
    """16 bytes for the values of each tensor, of any dtype and device."""
    return {name: xxhash.xxh3_128_digest(_memory(tensor)) for name, tensor in named}


def _memory(tensor: torch.Tensor) -> memoryview | bytes:
    if not tensor.numel():
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
