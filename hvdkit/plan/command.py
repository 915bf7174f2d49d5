"""The command that starts a planned run, with the file of `mpi_configs/` for its situation."""

import shlex
from dataclasses import asdict

from hvdkit.plan.network import Ranks
from hvdkit.train.config import TrainConfig

ETHERNET_BYTES_PER_S = 5e9
"""Faster links are taken to be InfiniBand or RoCE."""
_READY_HOSTFILES = (2, 4, 8)


def train_options(config: TrainConfig, stage: int) -> list[str]:
    """The options of `hvdkit.train` that differ from its defaults."""
    defaults = asdict(TrainConfig())
    words = []
    for name, value in {**asdict(config), "sharding": stage}.items():
        if value == defaults[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag, *value] if isinstance(value, list) else [flag, str(value)]
    return words


def command_lines(
    config: TrainConfig, stage: int, ranks: Ranks, cores: int, *, has_gpus: bool, link: float | None
) -> list[str]:
    """Lines for a shell, run in hvdkit's folder; what is to be filled in stands in a comment before them."""
    train = shlex.join(["python", "-m", "hvdkit.train", *train_options(config, stage)])
    if ranks.size == 1:
        return [train]
    launch = f"hvdkit run -np {ranks.size}"
    if ranks.hosts == 1:
        if has_gpus:
            return [_GPU_SETTINGS, f"{launch} -- {train}"]
        if ranks.size > cores:
            return [_settings("oversubscribed_laptop"), f"  {launch} -- {train}"]
        ready = f" --hostfile mpi_configs/one_machine_{ranks.size}_ranks.hosts"
        return [f"{launch}{ready if ranks.size in _READY_HOSTFILES else ''} -- {train}"]
    hosts = f"# hosts: a file with a line `NAME slots={ranks.per_host}` for each of the {ranks.hosts} hosts"
    if has_gpus:
        lines = [f"{hosts}; eth0: the interface that joins them", _GPU_SETTINGS]
        return [*lines, f"{launch} --hostfile hosts --network-interface eth0 -- {train}"]
    is_fast = link is not None and link > ETHERNET_BYTES_PER_S
    name = "infiniband_ucx" if is_fast else "two_hosts_ethernet"
    more = "" if is_fast else f"; in mpi_configs/{name}.conf: the interface that joins them"
    return [f"{hosts}{more}", _settings(name), f"  {launch} --launcher mpirun --hostfile hosts -- {train}"]


_GPU_SETTINGS = "set -a; . mpi_configs/gpus_nccl.env; set +a"


def _settings(name: str) -> str:
    return f"OMPI_MCA_mca_base_param_files=$PWD/mpi_configs/{name}.conf \\"
