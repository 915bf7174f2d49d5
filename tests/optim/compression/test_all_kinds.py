"""What holds for every bucket compressor, on one rank and on several, over both kinds of collectives."""

import math
from typing import Any

import pytest
import torch

from hvdkit.optim.compression import BucketCompression, BucketCompressor, average_errors
from hvdkit.runtime import World, gather_objects
from tests.optim.compression.counting import KINDS, collectives_of
from tests.optim.compression.problems import (
    COMPRESSORS,
    DTYPES,
    SHAPES,
    assert_same_bits,
    contribution,
    count,
    exact_sum,
    label,
)

every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS, ids=label)
every_kind = pytest.mark.parametrize("kind", KINDS)


def total_error(world: World, state: BucketCompression) -> torch.Tensor:
    """All ranks' residuals of all parameters, summed: (n,) float64; zeros where a parameter has none."""
    mine = [
        entry["error"].double().flatten() if "error" in entry else torch.zeros(shape.numel(), dtype=torch.float64)
        for entry, shape in zip(state.state_dict(), SHAPES, strict=True)
    ]
    return torch.stack(gather_objects(world, torch.cat(mine))).sum(dim=0)


@every_compressor
@pytest.mark.parametrize("dtype", DTYPES)
@every_kind
def test_nothing_is_lost(world: World, kind: str, dtype: torch.dtype, compressor: BucketCompressor) -> None:
    """What was received over all steps, and what is still kept, add up to the exact sums; same bits everywhere."""
    state, values = compressor.for_bucket(SHAPES, dtype, "cpu"), count(SHAPES)
    received, wanted = torch.zeros(2, values, dtype=torch.float64)
    for step in range(6):
        flat = contribution(world.rank, step, values, dtype)
        state.sum_(flat, "test", collectives_of(kind, world))
        assert flat.dtype == dtype
        assert_same_bits(world, flat)
        received += flat.double()
        wanted += exact_sum(world.size, step, values, dtype)
    # Rounding of the result to its dtype is lost, as without compression; the rest is float32 at least. Horovod's
    # own sums are as exact.
    tolerance = 20 * max(3, world.size) * (torch.finfo(dtype).eps if dtype != torch.float64 else 1e-11)
    torch.testing.assert_close(received + total_error(world, state), wanted, rtol=0, atol=tolerance)


@every_compressor
def test_residual_stays_bounded(world: World, compressor: BucketCompressor) -> None:
    """The same gradient for 120 steps: the mean of what was received converges to the sum like 1/steps."""
    state, values = compressor.for_bucket(SHAPES, torch.float32, "cpu"), count(SHAPES)
    wanted = exact_sum(world.size, 0, values)
    received = torch.zeros(values, dtype=torch.float64)
    distances = []
    for _ in range(120):
        flat = contribution(world.rank, 0, values)
        state.sum_(flat, "test", collectives_of("naive", world))
        received += flat.double()
        distances.append(float((received / (len(distances) + 1) - wanted).norm() / wanted.norm()))
    assert distances[119] < max(0.6 * distances[59], 1e-6), distances[::20]
    assert distances[119] < 0.35


@every_compressor
@every_kind
def test_bytes_are_those_that_were_sent(world: World, kind: str, compressor: BucketCompressor) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        state, collectives = compressor.for_bucket(SHAPES, dtype, "cpu"), collectives_of(kind, world)
        reported = sum(state.sum_(contribution(world.rank, s, count(SHAPES), dtype), "t", collectives) for s in (0, 1))
        assert reported == pytest.approx(collectives.bytes_sent)
        assert (reported > 0) == (world.size > 1)


@every_compressor
@pytest.mark.parametrize("bad, place", [(math.nan, 0), (math.inf, 700), (-math.inf, 1217), (math.nan, -1)])
def test_a_bad_value_reaches_all_and_is_forgotten(
    world: World, compressor: BucketCompressor, bad: float, place: int
) -> None:
    """A step with NaN or infinity on one rank is NaN on all; the steps around it are as if it had not been."""
    values, collectives = count(SHAPES), collectives_of("naive", world)
    state, untouched = (compressor.for_bucket(SHAPES, torch.float32, "cpu") for _ in range(2))
    for step in range(4):
        if step == 2:
            flat = contribution(world.rank, 99, values)
            if world.rank == world.size - 1:
                flat[place] = bad
            state.sum_(flat, "bad", collectives)
            assert torch.isnan(flat).all()
        flat, wanted = contribution(world.rank, step, values), contribution(world.rank, step, values)
        state.sum_(flat, "test", collectives)
        untouched.sum_(wanted, "test", collectives)
        assert torch.equal(flat, wanted)


@every_compressor
@every_kind
def test_a_rank_with_zeros_enters_the_same_collectives(world: World, kind: str, compressor: BucketCompressor) -> None:
    """A rank that has nothing to give (it joined) follows the others; where all are at zero the sum is zero."""
    values = count(SHAPES)
    state, collectives = compressor.for_bucket(SHAPES, torch.float32, "cpu"), collectives_of(kind, world)
    for step in range(3):
        flat = contribution(world.rank, step, values) if world.rank == 0 else torch.zeros(values)
        state.sum_(flat, "test", collectives)
        assert_same_bits(world, flat)
        assert flat.abs().max() > 0
    calls = gather_objects(world, collectives.calls)
    assert all(theirs == calls[0] for theirs in calls)
    if world.rank > 0:
        assert all(not entry["error"].any() for entry in state.state_dict() if "error" in entry)
    silent = compressor.for_bucket(SHAPES, torch.float32, "cpu")
    for _ in range(2):
        flat = torch.zeros(values)
        silent.sum_(flat, "zeros", collectives)
        assert not flat.any()
    flat = contribution(world.rank, 7, values)
    silent.sum_(flat, "after zeros", collectives)
    assert flat.abs().max() > 0


@every_compressor
@pytest.mark.parametrize("shapes", [[], [(0,), (0, 3)], [(1,)], [()], [(1, 1)], [(2,), (1,)], [(5, 1)]], ids=str)
@every_kind
def test_tiny_buckets(world: World, kind: str, compressor: BucketCompressor, shapes: list[tuple[int, ...]]) -> None:
    """No values, one value, fewer than a block or than ranks: sent in the end, in every dtype."""
    sizes = [torch.Size(shape) for shape in shapes]
    values, collectives = count(sizes), collectives_of(kind, world)
    for dtype in DTYPES:
        state = compressor.for_bucket(sizes, dtype, "cpu")
        received = torch.zeros(values, dtype=torch.float64)
        for step in range(4):
            # One gradient, and then time to send it.
            flat = contribution(world.rank, 0, values, dtype) * (step == 0)
            state.sum_(flat, "test", collectives)
            received += flat.double()
        wanted = exact_sum(world.size, 0, values, dtype)
        torch.testing.assert_close(received, wanted, rtol=0, atol=40 * max(torch.finfo(dtype).eps, 1e-9))
    assert values or not collectives.calls


@every_compressor
def test_saved_state_continues_bit_for_bit(world: World, compressor: BucketCompressor) -> None:
    values, collectives = count(SHAPES), collectives_of("naive", world)
    state = compressor.for_bucket(SHAPES, torch.float32, "cpu")
    for step in range(3):
        state.sum_(contribution(world.rank, step, values), "test", collectives)
    saved = [{key: tensor.clone() for key, tensor in entry.items()} for entry in state.state_dict()]
    restored = compressor.for_bucket(SHAPES, torch.float32, "cpu")
    restored.load_state_dict(saved)
    for step in range(3, 6):
        flat, again = contribution(world.rank, step, values), contribution(world.rank, step, values)
        state.sum_(flat, "test", collectives)
        restored.sum_(again, "test", collectives)
        assert torch.equal(flat, again)
    # A bucket of the same parameters in another order takes the same dicts.
    turned = compressor.for_bucket(SHAPES[::-1], torch.float32, "cpu")
    turned.load_state_dict(saved[::-1])
    for entry, wanted in zip(turned.state_dict(), saved[::-1], strict=True):
        assert entry.keys() == wanted.keys() and all(torch.equal(entry[key], wanted[key]) for key in wanted)
    # Without a saved part it starts anew.
    restored.load_state_dict([{} for _ in SHAPES])
    assert not any(tensor.any() for entry in restored.state_dict() for tensor in entry.values())


@every_compressor
def test_state_of_another_shape_is_refused(world: World, compressor: BucketCompressor) -> None:
    state = compressor.for_bucket(SHAPES, torch.float32, "cpu")
    state.sum_(contribution(world.rank, 0, count(SHAPES)), "test", collectives_of("naive", world))
    before = [{key: tensor.clone() for key, tensor in entry.items()} for entry in state.state_dict()]
    with pytest.raises(ValueError, match="saved for 1 parameters, this bucket has 7"):
        state.load_state_dict([{}])
    with pytest.raises(ValueError, match="'error' of parameter 0 was saved with shape"):
        state.load_state_dict([{"error": torch.zeros(3)}, *({} for _ in SHAPES[1:])])
    for entry, wanted in zip(state.state_dict(), before, strict=True):
        assert all(torch.equal(entry[key], wanted[key]) for key in wanted)


@every_compressor
@every_kind
def test_average_errors_keep_their_sum(world: World, kind: str, compressor: BucketCompressor) -> None:
    """What rank 0 saves for all ranks holds all that was not sent."""
    state, collectives = compressor.for_bucket(SHAPES, torch.float32, "cpu"), collectives_of(kind, world)
    for step in range(2):
        state.sum_(contribution(world.rank, step, count(SHAPES)), "test", collectives)
    before, kept = total_error(world, state), [{k: t.clone() for k, t in e.items()} for e in state.state_dict()]
    averaged = average_errors(state.state_dict(), "average", collectives)
    for entry, wanted in zip(state.state_dict(), kept, strict=True):
        assert all(torch.equal(entry[key], wanted[key]) for key in wanted), "changed the state itself"
    state.load_state_dict(averaged)
    torch.testing.assert_close(total_error(world, state), before, rtol=0, atol=1e-5)


@every_compressor
def test_complex_parameters(world: World, compressor: BucketCompressor) -> None:
    """The flat tensor of complex parameters holds twice as many real values."""
    shapes = [torch.Size((40, 30)), torch.Size((9,))]
    state = compressor.for_bucket(shapes, torch.complex64, "cpu")
    flat = contribution(world.rank, 0, 2 * count(shapes))
    state.sum_(flat, "test", collectives_of("naive", world))
    errors = torch.zeros(2 * count(shapes), dtype=torch.float64)
    for entry, part in zip(state.state_dict(), errors.split([2400, 18]), strict=True):
        if "error" in entry:
            part.copy_(entry["error"].double().flatten())
    everyone = torch.stack(gather_objects(world, errors)).sum(dim=0)
    torch.testing.assert_close(flat.double() + everyone, exact_sum(world.size, 0, len(flat)), rtol=0, atol=1e-5)


@every_compressor
def test_a_wrong_tensor_is_refused(world: World, compressor: BucketCompressor) -> None:
    state = compressor.for_bucket([torch.Size((3, 2))], torch.float32, "cpu")
    wrong: list[Any] = [torch.zeros(5), torch.zeros(3, 2), torch.zeros(6, dtype=torch.float64), torch.zeros(12)[::2]]
    for tensor in wrong:
        with pytest.raises(ValueError, match=r"this bucket needs shape \(6,\), torch.float32, contiguous"):
            state.sum_(tensor, "test", collectives_of("naive", world))
