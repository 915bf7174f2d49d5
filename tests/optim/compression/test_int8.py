"""8-bit blocks: the error of every value against the scale of its block, and the bytes of the formula."""

import math

import pytest
import torch

from hvdkit.optim.compression import Int8
from hvdkit.runtime import World
from tests.optim.compression.counting import collectives_of
from tests.optim.compression.problems import contribution, exact_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [1, 3, 511, 512, 513, 200_001])
@pytest.mark.parametrize("block", [7, 512, 100_000])
def test_error_is_half_a_step_per_rank(world: World, dtype: torch.dtype, values: int, block: int) -> None:
    state = Int8(block_values=block).for_bucket([torch.Size((values,))], dtype, "cpu")
    flat = contribution(world.rank, 0, values, dtype)
    state.sum_(flat, "test", collectives_of("engine", world))
    bound = torch.zeros(values, dtype=torch.float64)
    for rank in range(world.size):
        padded = torch.zeros(math.ceil(values / block) * block, dtype=torch.float64)
        padded[:values] = contribution(rank, 0, values, dtype).abs()
        bound += (padded.view(-1, block).amax(dim=1) / 127 / 2).repeat_interleave(block)[:values]
    off = (flat.double() - exact_sum(world.size, 0, values, dtype)).abs()
    assert (off <= bound * (1 + 1e-4) + 1e-6).all()


def test_values_of_the_grid_are_exact(world: World) -> None:
    """Whole numbers up to 127, with 127 in every block, pass unchanged and leave nothing."""
    whole = torch.arange(-127.0, 128).repeat(9)
    flat = whole * 2.0**world.rank
    state = Int8(block_values=255).for_bucket([whole.shape], torch.float32, "cpu")
    state.sum_(flat, "test", collectives_of("engine", world))
    assert torch.equal(flat, whole * (2**world.size - 1))
    assert not state.state_dict()[0]["error"].any()


@pytest.mark.parametrize("values", [1, 512, 100_003])
def test_bytes_by_the_formula(world: World, values: int) -> None:
    for dtype, scale_bytes in ((torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 4)):
        state = Int8().for_bucket([torch.Size((values,))], dtype, "cpu")
        sent = state.sum_(contribution(world.rank, 0, values, dtype), "test", collectives_of("naive", world))
        blocks = math.ceil(values / 512)
        assert sent == (world.size - 1) * scale_bytes * (math.ceil(values / scale_bytes) + blocks)
    if world.size == 2 and values > 1000:
        uncompressed = 2 * (world.size - 1) / world.size * 4 * values
        assert state.sum_(torch.zeros(values, dtype=dtype), "t", collectives_of("naive", world)) / uncompressed > 0.25
        assert sent / uncompressed < 0.253


@pytest.mark.parametrize("largest", [1e-45, 1e-42, 1e-38, 3.4e38])
def test_the_ends_of_float32(world: World, largest: float) -> None:
    """Values too small for a scale wait; values near the largest float arrive or are NaN, and poison nothing."""
    state = Int8().for_bucket([torch.Size((600,))], torch.float32, "cpu")
    flat = torch.linspace(-1, 1, 600) * largest if world.rank == 0 else torch.zeros(600)
    wanted = flat.clone()
    state.sum_(flat, "test", collectives_of("naive", world))
    error = state.state_dict()[0]["error"]
    assert torch.isfinite(error).all()
    if world.rank == 0 and torch.isfinite(flat).all():
        torch.testing.assert_close(flat / largest + error / largest, wanted / largest)
    flat = torch.ones(600)
    state.sum_(flat, "test", collectives_of("naive", world))
    assert torch.isfinite(flat).all()


def test_options() -> None:
    with pytest.raises(ValueError, match="block_values=0 must be 1 or more"):
        Int8(block_values=0)
