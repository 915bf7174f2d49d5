"""The command that starts a planned run, with the file of `mpi_configs/` for its situation."""

import shlex
from dataclasses import asdict

from hvdkit.plan.network import Ranks
from hvdkit.train.config import TrainConfig

_ETHERNET_BYTES_PER_S = 5e9
"""Faster links are InfiniBand or RoCE, as a rule."""
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
    """Lines for a shell, run in hvdkit's folder; names of hosts are to be filled in."""
    train = shlex.join(["python", "-m", "hvdkit.train", *train_options(config, stage)])
    if ranks.size == 1:
        return [train]
    hosts = ",".join(f"node{number + 1}:{ranks.per_host}" for number in range(min(ranks.hosts, 3)))
    hosts += ",..." if ranks.hosts > 3 else ""
    if has_gpus:
        where = f" -H {hosts} --network-interface eth0" if ranks.hosts > 1 else ""
        return ["set -a; . mpi_configs/gpus_nccl.env; set +a", f"horovodrun -np {ranks.size}{where} {train}"]
    if ranks.hosts == 1:
        if ranks.size > cores:
            variable = "OMPI_MCA_mca_base_param_files=$PWD/mpi_configs/oversubscribed_laptop.conf"
            return [f"{variable} \\", f"  horovodrun -np {ranks.size} {train}"]
        if ranks.size in _READY_HOSTFILES:
            return [f"mpirun --hostfile mpi_configs/one_machine_{ranks.size}_ranks.hosts {train}"]
        return [f"horovodrun -np {ranks.size} {train}"]
    is_fast = link is not None and link > _ETHERNET_BYTES_PER_S
    name = "infiniband_ucx" if is_fast else "two_hosts_ethernet"
    launcher = " --launcher mpirun" if is_fast else ""
    return [
        f"OMPI_MCA_mca_base_param_files=$PWD/mpi_configs/{name}.conf \\",
        f"  hvdkit run{launcher} -np {ranks.size} -H {hosts} -- {train}",
    ]
