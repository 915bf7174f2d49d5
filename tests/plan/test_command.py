"""The command that a plan recommends: for its situation, and read back by `hvdkit train` as it was meant."""

import shlex
from pathlib import Path

import pytest

from hvdkit.plan.command import command_lines, train_options
from hvdkit.plan.network import Ranks
from hvdkit.train.config import TrainConfig, parse

ROOT = Path(__file__).resolve().parents[2]


def test_options_are_read_back() -> None:
    config = TrainConfig(model="gpt2", context=1024, data=["a b/*.txt", "c"], precision="bf16", skip_bad=True, seed=7)
    read = parse(shlex.split(shlex.join(train_options(config, 3))))
    assert read == TrainConfig(**{**vars(config), "sharding": 3})


@pytest.mark.parametrize(
    ("ranks", "cores", "has_gpus", "link", "said", "file"),
    [
        (Ranks(1, 1), 2, False, None, "python -m hvdkit.train", None),
        (Ranks(1, 2), 2, False, None, "hvdkit run -np 2 --hostfile", "one_machine_2_ranks.hosts"),
        (Ranks(1, 3), 4, False, None, "hvdkit run -np 3 -- python -m hvdkit.train", None),
        (Ranks(1, 8), 2, False, None, "hvdkit run -np 8 --", "oversubscribed_laptop.conf"),
        (
            Ranks(2, 2),
            2,
            False,
            1e8,
            "hvdkit run -np 4 --launcher mpirun --hostfile hosts --",
            "two_hosts_ethernet.conf",
        ),
        (Ranks(8, 8), 2, False, 25e9, "`NAME slots=8` for each of the 8 hosts", "infiniband_ucx.conf"),
        (Ranks(2, 8), 2, True, 25e9, "-np 16 --hostfile hosts --network-interface eth0", "gpus_nccl.env"),
    ],
)
def test_the_situation(
    ranks: Ranks, cores: int, has_gpus: bool, link: float | None, said: str, file: str | None
) -> None:
    text = "\n".join(command_lines(TrainConfig(), 2, ranks, cores, has_gpus=has_gpus, link=link))
    assert said in text and text.endswith("python -m hvdkit.train --sharding 2")
    assert ("mpi_configs/" in text) == (file is not None)
    if file is not None:
        assert f"mpi_configs/{file}" in text and (ROOT / "mpi_configs" / file).is_file()
