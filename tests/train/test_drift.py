"""`--check-every`: a parameter that differs by one bit on one rank stops the run, and is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from hvdkit.errors import DivergenceError
from hvdkit.runtime import World, gather_objects
from hvdkit.train.drift import hashes
from hvdkit.train.job import Job
from tests.train.runs import configure, write_text_together


def change_one_bit(tensor: torch.Tensor) -> None:
    """The lowest of the first value."""
    with torch.no_grad():
        tensor.reshape(-1).view(torch.int64)[0] ^= 1


def make_job(world: World, folder: Path, **options: Any) -> Job:
    data = write_text_together(world, folder / "text")
    return Job(world, configure(data, folder / "run", steps=8, check_every=2, eval_every=0, **options))


@pytest.mark.parametrize("options", [{}, {"sharding": 2, "strategy": "horovod"}], ids=["plain", "stage 2"])
def test_one_bit_on_one_rank(world: World, shared_path: Path, options: dict[str, Any]) -> None:
    job = make_job(world, shared_path, **options)
    names = [name for name, _ in job.model.named_parameters()]
    take = job.loop._one_step

    def one_step() -> Any:
        result = take()
        if job.loop.step == 4 and world.rank == world.size - 1:
            change_one_bit(dict(job.model.named_parameters())[names[-1]])
        return result

    job.loop._one_step = one_step  # type: ignore[method-assign]
    if world.size == 1:
        job.run()
        return
    with pytest.raises(DivergenceError) as caught:
        job.run()
    others = {2: "rank 0", 3: "ranks 0, 1"}.get(world.size, f"ranks 0-{world.size - 2}")
    text = str(caught.value)
    where = f"rank {world.size - 1} differs from {others} in {names[-1]} (1 of {len(names)} parameters)"
    assert text.startswith(f"step 4: parameters have drifted apart: {where}")
    assert len(set(gather_objects(world, text))) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "int8"}, {"sharding": 1}, {"sharding": 3}, {"local": "diloco", "sync_every": 3},
     {"local": "sgd", "sync_every": 4, "fragments": 2, "overlap_steps": 1}],
    ids=["plain", "int8", "stage 1", "stage 3", "diloco", "streaming"],
)  # fmt: skip
def test_runs_that_agree_go_on(world: World, shared_path: Path, options: dict[str, Any]) -> None:
    job = make_job(world, shared_path, **options)
    job.run()
    assert job.loop.step == 8


def test_the_outer_model_of_local_updates(world: World, shared_path: Path) -> None:
    job = make_job(world, shared_path, local="diloco", sync_every=50)
    if world.rank == world.size - 1:
        change_one_bit(job.aggregation._rounds._state.fragments[0].outer)  # type: ignore[attr-defined]
    if world.size > 1:
        with pytest.raises(DivergenceError, match="step 2: parameters have drifted apart: rank"):
            job.run()


def test_hashes_are_of_the_values_in_memory() -> None:
    strided = torch.arange(6, dtype=torch.bfloat16).view(2, 3).t()
    found = hashes([("strided", strided), ("number", torch.tensor(3.0)), ("empty", torch.zeros(0, 4))])
    assert found["strided"] == hashes([("", strided.contiguous())])[""]
    assert found["number"] == xxhash.xxh3_128_digest(torch.tensor([3.0]).numpy().tobytes())
    assert found["empty"] == xxhash.xxh3_128_digest(b"")
