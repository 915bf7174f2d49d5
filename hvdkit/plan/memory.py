"""The memory of a rank at each sharding stage.

The state follows the formulas of `hvdkit.sharding.memory`. Activations are what is alive at the worst moment of a
backward pass besides parameters and gradients; buffers, what communication holds: small gradients packed into buckets
(stage 0), the largest message twice (stages 1 and 2), the parameters outside the layers and one or two layers with
their gradients (stage 3). While gradients accumulate over several micro-batches every rank holds whole ones, and at
stage 3 the parameters that a pass has gathered. At stages 2 and 3 gradients come and go between pieces that stay,
which leaves holes in the heap: a quarter and an eighth of the gradients that are not mapped by themselves, as measured
with glibc. The peak is the sum of all, although activations are gone when the last gradients come: what a process frees
in a step its allocator keeps for the next one (glibc's free heap in training was as large as the activations).
"""

from dataclasses import dataclass, replace

from hvdkit.plan.footprint import Footprint
from hvdkit.sharding.memory import StateBytes, state_bytes

STAGES = (0, 1, 2, 3)
_HOLES = {2: 0.25, 3: 0.125}
_MAPPED_BYTES = 32 * 2**20
"""glibc maps longer blocks one by one, and gives them back when they are freed."""
_ADAMW_NUMBERS = 2
"""Per parameter, of its dtype."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    state: StateBytes
    activations: float
    buffers: float
    process: float
    peak: float
    """In training."""
    saving: float
    """The most on rank 0 while it saves a checkpoint, for which it assembles what is cut."""


def plan_memory(
    footprint: Footprint,
    stage: int,
    ranks: int,
    *,
    process_bytes: float,
    shared_weights: bool = False,
    runs_ahead: bool = False,
    accumulates: bool = False,
) -> Memory:
    """The memory of a rank, at `stage` with `ranks` ranks.

    Args:
        process_bytes: of a rank without a model.
        shared_weights: one copy of the weights for all ranks, who are on one node.
        runs_ahead: at stage 3, a layer is gathered while another one is in use.
        accumulates: several micro-batches make a step.
    """
    cut = stage if ranks > 1 else 0

    def state_of(at_stage: int, shared: bool) -> StateBytes:
        return state_bytes(
            at_stage,
            footprint.parameters,
            ranks,
            itemsize=footprint.itemsize,
            frozen=footprint.frozen,
            state_per_parameter=_ADAMW_NUMBERS * footprint.itemsize / 4,
            shared_weights=shared,
        )

    state = state_of(cut, shared_weights)
    share = 1 - 1 / ranks  # of what is gathered, the rest is this rank's already
    if cut == 3 and accumulates:
        buffers = footprint.parameters * footprint.itemsize * share
    elif cut == 3:
        buffers = (footprint.root + (2 if runs_ahead else 1) * footprint.layer) * share + footprint.layer
    else:
        buffers = 2.0 * max(footprint.flat_bytes, default=0) if cut else float(footprint.packed)
    buffers += _HOLES.get(cut, 0.0) * sum(nbytes for nbytes in footprint.flat_bytes if nbytes < _MAPPED_BYTES)
    gradients = float(footprint.gradients) if accumulates else state.gradients
    whole = state_of(0, False)
    assembled = whole.optimizer if cut else 0.0
    if cut == 3:
        assembled += whole.parameters * (1 - 1 / ranks)
    held = state.parameters + state.optimizer + process_bytes
    return Memory(
        state=replace(state, gradients=gradients),
        activations=footprint.activations,
        buffers=buffers,
        process=process_bytes,
        peak=held + gradients + footprint.activations + buffers,
        saving=held + assembled,
    )
