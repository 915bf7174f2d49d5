"""The largest values: exactly those, exactly as they are."""

import math

import pytest
import torch

from hvdkit.optim.compression import TopK
from hvdkit.optim.compression.topk import largest
from hvdkit.runtime import World
from tests.optim.compression.counting import collectives_of
from tests.optim.compression.problems import contribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ratio_1_is_the_exact_sum(world: World, dtype: torch.dtype) -> None:
    for step in range(2):
        flat = contribution(world.rank, step, 1000, dtype)
        state = TopK(ratio=1).for_bucket([torch.Size((10, 100))], dtype, "cpu")
        state.sum_(flat, "test", collectives_of("engine", world))
        wanted = torch.zeros(1000, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for rank in range(world.size):
            wanted += contribution(rank, step, 1000, dtype)
        assert torch.equal(flat, wanted.to(dtype))
        assert not state.state_dict()[0]["error"].any()


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.3])
def test_sends_the_largest_and_keeps_the_rest(world: World, ratio: float) -> None:
    values = 3001
    state = TopK(ratio=ratio).for_bucket([torch.Size((values,))], torch.float32, "cpu")
    flat, mine = (contribution(world.rank, 0, values) for _ in range(2))
    state.sum_(flat, "test", collectives_of("engine", world))
    k = math.ceil(ratio * values)
    wanted = torch.zeros(values)
    for rank in range(world.size):
        theirs = contribution(rank, 0, values)
        places = theirs.abs().topk(k).indices
        wanted[places] += theirs[places]
    assert torch.equal(flat, wanted)
    kept = mine.clone()
    kept[mine.abs().topk(k).indices] = 0
    assert torch.equal(state.state_dict()[0]["error"], kept)


@pytest.mark.parametrize("dtype, each", [(torch.float32, 8), (torch.float64, 12), (torch.float16, 8)])
def test_bytes_by_the_formula(world: World, dtype: torch.dtype, each: int) -> None:
    state = TopK(ratio=0.01).for_bucket([torch.Size((12345,))], dtype, "cpu")
    sent = state.sum_(contribution(world.rank, 0, 12345, dtype), "test", collectives_of("naive", world))
    assert sent == (world.size - 1) * each * 124


def samples() -> dict[str, torch.Tensor]:
    """Magnitudes for which a sample is a good guide, none, or a misleading one."""
    many = 200_000
    spread = contribution(0, 0, many).abs()
    sparse = torch.zeros(many)
    sparse[torch.randperm(many, generator=torch.Generator().manual_seed(0))[:900]] = spread[:900]
    striped = torch.zeros(many)
    striped[:: many // 65536] = 1 + spread[:: many // 65536]  # all that the sample sees is large
    hidden = spread.clone()
    hidden[1 :: many // 65536] += 100  # the large ones stand beside the sampled ones
    return {
        "spread": spread, "zeros": torch.zeros(many), "sparse": sparse, "striped": striped, "hidden": hidden,
        "equal": torch.ones(many), "sorted": spread.sort().values, "few": spread[:5],
    }  # fmt: skip


@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("ratio", [1e-6, 0.001, 0.01, 0.5, 1.0])
def test_largest_equals_sorting(name: str, ratio: float) -> None:
    magnitude = samples()[name]
    k = math.ceil(ratio * len(magnitude))
    places = largest(magnitude, k)
    assert len(places) == k == len(places.unique())
    assert torch.equal(magnitude[places].sort().values, magnitude.topk(k).values.sort().values)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan])
def test_options(ratio: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        TopK(ratio=ratio)


def test_too_large_a_bucket() -> None:
    with pytest.raises(ValueError, match=r"fewer than 2\^31"):
        TopK().for_bucket([torch.Size((2**16, 2**15))], torch.float32, "meta")
