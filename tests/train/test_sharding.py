"""A run goes on with another `--sharding` than it began with, to the same losses; what it prints of it."""

from pathlib import Path

import pytest

from hvdkit.errors import ConfigError
from hvdkit.runtime import World
from hvdkit.train.job import Job
from tests.jobs import run_ranks, succeed
from tests.train.runs import as_words, assert_same_losses, configure, losses, write_text, write_text_together


@pytest.mark.parametrize(("before", "after"), [(3, 0), (0, 3), (1, 2)])
def test_another_sharding_goes_on(world: World, shared_path: Path, before: int, after: int) -> None:
    data = write_text_together(world, shared_path / "text")
    Job(world, configure(data, shared_path / "first", sharding=before)).run()
    half_way = shared_path / "first" / "checkpoints" / "step-00000010"
    Job(world, configure(data, shared_path / "second", sharding=after, resume=str(half_way))).run()
    if world.is_root:
        wanted = losses(shared_path / "first")
        assert_same_losses(losses(shared_path / "second"), {step: wanted[step] for step in range(11, 21)})
        validated = losses(shared_path / "first", "validation_loss")
        assert abs(losses(shared_path / "second", "validation_loss")[20] - validated[20]) < 1e-9


def test_compression_does_not_go_with_it(world: World, shared_path: Path) -> None:
    data = write_text_together(world, shared_path / "text")
    with pytest.raises(ConfigError, match="compression int8 does not go with --sharding 1"):
        Job(world, configure(data, shared_path / "run", sharding=1, compression="int8"))


@pytest.mark.launch
@pytest.mark.parametrize("stage", [1, 3])
def test_what_each_rank_holds_is_printed_beside_the_formula(tmp_path: Path, stage: int) -> None:
    words = as_words(configure(write_text(tmp_path / "text"), tmp_path / "run", sharding=stage, precision="float32",
                               model="bert-toy", sample_tokens=20))  # fmt: skip
    printed = succeed(run_ranks(2, "-m", "hvdkit.train", *words, launcher="horovodrun-mpi")).stdout
    assert f"sharding stage {stage}: " in printed
    assert ("one copy of the weights for all ranks" in printed) == (stage == 1)
    lines = [line.rpartition("in all ")[2].split()[0] for line in printed.splitlines() if "in all " in line]
    assert len(lines) == 3, printed
    assert [float(line) for line in lines] == pytest.approx([float(lines[-1])] * 3, rel=0.05, abs=0.11)
