"""What `hvdkit plan` is asked: the options of `hvdkit train`, and those of the cluster."""

import re
from dataclasses import dataclass

from hvdkit.errors import ConfigError
from hvdkit.train.command_line import add_options, from_values, make_parser, option, read
from hvdkit.train.config import TrainConfig

_PREFIXES = {
    "": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15,
    "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40, "pi": 2.0**50,
}  # fmt: skip
_BYTES = {"B": 1.0}
_PER_SECOND = {"B": 1.0, "B/s": 1.0, "b": 0.125, "b/s": 0.125, "bps": 0.125, "bit": 0.125, "bit/s": 0.125}
_OPERATIONS = {"": 1.0, "FLOPS": 1.0, "FLOP/s": 1.0}
_MOST_RANKS = 2**20


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
        for name, value in (("--ranks", self.ranks), ("--ranks-per-host", self.ranks_per_host)):
            if not 0 <= value <= _MOST_RANKS:
                raise ConfigError(f"{name} {value} must be between 1 and {_MOST_RANKS}, or 0 for the default")
        if self.ranks and self.ranks_per_host and self.ranks % self.ranks_per_host and self.ranks > self.ranks_per_host:
            raise ConfigError(f"--ranks {self.ranks} must be a multiple of --ranks-per-host {self.ranks_per_host}")
        _ = self.memory_bytes, self.link_bytes_per_s, self.flops_per_s, self.inside_bytes_per_s

    @property
    def memory_bytes(self) -> float | None:
        """Of a rank."""
        return None if self.memory is None else _parse("--memory", self.memory, _BYTES, "16GiB or 80GB")

    @property
    def link_bytes_per_s(self) -> float | None:
        """Of a host."""
        return None if self.link is None else _parse("--link", self.link, _PER_SECOND, "25gbit (bits) or 3GB (bytes)")

    @property
    def inside_bytes_per_s(self) -> float | None:
        """Of a rank."""
        return None if self.inside is None else _parse("--inside", self.inside, _PER_SECOND, "300GB (bytes)")

    @property
    def flops_per_s(self) -> float | None:
        """Of a rank."""
        return None if self.flops is None else _parse("--flops", self.flops, _OPERATIONS, "40T")


def parse(argv: list[str]) -> tuple[PlanOptions, TrainConfig]:
    """What a command line means. Raises ConfigError for anything it cannot read; prints help and exits if asked to."""
    parser = make_parser("hvdkit plan", _DESCRIPTION)
    add_options(parser, PlanOptions)
    add_options(parser, TrainConfig)
    values = read(parser, argv)
    config = from_values(TrainConfig, values)
    for name, default in (("compression", "none"), ("strategy", "auto"), ("init_from", None), ("resume", None)):
        if (given := getattr(config, name)) != default:
            raise ConfigError(f"--{name.replace('_', '-')} {given} cannot be planned: {_WHY_NOT[name]}")
    return from_values(PlanOptions, values), config


def _parse(name: str, text: str, units: dict[str, float], example: str) -> float:
    """A number with a prefix, in either case, and one of `units`, of which small letters count as words of any case."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgtpKMGTP]?i?)([a-zA-Z/]*)", text.strip())
    unit = found[3] if found else None
    if found and unit not in units:
        unit = next((known for known in units if len(known) > 2 and known.lower() == found[3].lower()), None)
    if not found or unit is None or found[2].lower() not in _PREFIXES or float(found[1]) == 0:
        raise ConfigError(f"{name} {text} cannot be read; write it as {example}")
    return float(found[1]) * _PREFIXES[found[2].lower()] * units[unit]


_WHY_NOT = {
    "compression": "what it costs and saves depends on the model; leave it out",
    "strategy": "the plan tells every strategy's time; leave it out",
    "init_from": "name the model itself by --model",
    "resume": "name the model itself by --model",
}
_DESCRIPTION = (
    "Tell what a training run needs before it runs: memory per rank and time per step at each sharding stage, what "
    "fits, how it scales, and the command to start it. Takes the options of `hvdkit train` too. The speed of computing "
    "and of collectives is measured on this machine, in some seconds, or given."
)
