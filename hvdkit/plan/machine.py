"""What a machine can do, as far as planning goes: the rates that `measure` found, or that were given instead."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from hvdkit.collectives.cost import Parameters

GIVEN = "given"
FLOPS_PER_BYTE = 100
"""Of a GPU in training, as a rule."""
_ADAMW_BYTES = 28
"""Per parameter: parameter, gradient and two numbers of state are read, and all but the gradient written."""


@dataclass(frozen=True)
class Machine:
    """Rates of one rank while the other ranks of its host do the same."""

    hosts: int
    """Of the ranks that measured."""
    ranks_per_host: int
    threads: int
    """CPU threads of a rank."""
    cores: int
    """Of a host, that the ranks may use."""
    has_free_core: bool
    """Whether communication may run beside computation."""
    flops_per_s: float
    """Floating-point operations of a forward and backward pass."""
    source: str
    """What gave `flops_per_s`, in words."""
    optimizer_s: float
    """Clipping and AdamW, seconds per parameter."""
    copy_s: float
    """Copying a byte from memory to memory, in seconds."""
    process_bytes: int
    """Proportional set size of a rank without a model: Python, torch, Horovod, MPI and their buffers."""
    memory: float
    """Bytes that the ranks of a host may use together."""
    collectives: Parameters | None
    """None for one rank, and where hvdkit's own algorithms cannot run."""

    def with_flops(self, flops_per_s: float) -> "Machine":
        """The same with a given speed of computing, and memory that moves a byte in FLOPS_PER_BYTE operations."""
        byte_s = FLOPS_PER_BYTE / flops_per_s
        return replace(
            self, flops_per_s=flops_per_s, source=GIVEN, optimizer_s=_ADAMW_BYTES * byte_s, copy_s=2 * byte_s
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        collectives = None if self.collectives is None else self.collectives.to_json()
        return {**asdict(replace(self, collectives=None)), "collectives": collectives}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Machine":
        """The inverse of `to_json`."""
        collectives = saved["collectives"]
        return cls(**{**saved, "collectives": collectives and Parameters.from_json(collectives)})
