"""What `hvdkit plan` is asked: the options of `hvdkit train`, and those of the cluster."""

import re
from dataclasses import dataclass

from hvdkit.errors import ConfigError
from hvdkit.train.config import TrainConfig, add_options, from_values, make_parser, option, read

_BYTES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_BITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class PlanOptions:
    """Where the run is to take place; sizes and speeds with units, as written."""

    ranks: int = option(0, "ranks in all (default: those that a launcher started, else one per core)")
    ranks_per_host: int = option(0, "ranks on each host (default: as launched, else all on one host)")
    memory: str | None = option(
        None, "memory of each rank, as 16GiB: a GPU's, or its share of a host (default: this machine's memory, shared)"
    )
    link: str | None = option(
        None,
        "what a host sends to others, as 25gbit or 3GB (per second; default: as measured, where launched)",
    )
    flops: str | None = option(
        None, "what a rank computes in training, as 40T (floating-point operations per second; default: as measured)"
    )
    inside: str | None = option(
        None, "what a rank sends to others of its host, as 200GB (per second): GPUs, over NCCL (default: as measured)"
    )
    picture: str | None = option(None, "also draw the scaling to this PNG file")
    json: bool = option(False, "print one JSON object, bytes and seconds")

    def __post_init__(self) -> None:
        if self.ranks < 0 or self.ranks_per_host < 0:
            raise ConfigError("--ranks and --ranks-per-host must be 1 or more")
        if self.ranks and self.ranks_per_host and self.ranks % self.ranks_per_host and self.ranks > self.ranks_per_host:
            raise ConfigError(f"--ranks {self.ranks} must be a multiple of --ranks-per-host {self.ranks_per_host}")
        _ = self.memory_bytes, self.link_bytes_per_s, self.flops_per_s, self.inside_bytes_per_s

    @property
    def memory_bytes(self) -> float | None:
        """Of a rank."""
        return None if self.memory is None else _parse("--memory", self.memory)

    @property
    def link_bytes_per_s(self) -> float | None:
        """Of a host."""
        return None if self.link is None else _parse("--link", self.link)

    @property
    def inside_bytes_per_s(self) -> float | None:
        """Of a rank."""
        return None if self.inside is None else _parse("--inside", self.inside)

    @property
    def flops_per_s(self) -> float | None:
        """Of a rank."""
        return None if self.flops is None else _parse("--flops", self.flops)


def parse(argv: list[str]) -> tuple[PlanOptions, TrainConfig]:
    """What a command line means. Raises ConfigError for anything it cannot read; prints help and exits if asked to."""
    parser = make_parser("hvdkit plan", _DESCRIPTION)
    add_options(parser, PlanOptions)
    add_options(parser, TrainConfig)
    values = read(parser, argv)
    config = from_values(TrainConfig, values)
    if config.compression not in ("none", "fp16", "bf16"):
        raise ConfigError(f"--compression {config.compression} cannot be planned; none, fp16 and bf16 can")
    return from_values(PlanOptions, values), config


def _parse(name: str, text: str) -> float:
    """Bytes (or operations), per second where it is a speed; `bit` after a prefix counts eight to the byte."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)(B|BIT|FLOPS)?(?:/S|PS)?", text.strip().upper())
    prefix = found[2] if found else ""
    is_bits = found is not None and found[3] == "BIT"
    if not found or prefix not in (_BITS if is_bits else _BYTES) or float(found[1]) == 0:
        raise ConfigError(f"{name} {text} cannot be read; write it as 16GiB, 25gbit, 3GB or 40T")
    return float(found[1]) * (_BITS[prefix] / 8 if is_bits else _BYTES[prefix])


_DESCRIPTION = (
    "Tell what a training run needs before it runs: memory per rank and time per step at each sharding stage, what "
    "fits, how it scales, and the command to start it. Takes the options of `hvdkit train` too. The speed of computing "
    "and of collectives is measured on this machine, in some seconds, or given."
)
