"""Fragments, shares of work, and sums with error feedback, each against what can be worked out by hand."""

from typing import Any

import pytest
import torch

from hvdkit.collectives import Collectives
from hvdkit.errors import ConfigError
from hvdkit.local.buffers import Buffers
from hvdkit.local.fragments import Fragment, partition
from hvdkit.local.pace import inner_steps, shares_of_work
from hvdkit.local.sums import sum_by
from hvdkit.optim.compression import parse_compression
from hvdkit.optim.connection import Connection
from hvdkit.runtime import World

NAMES = ["embed.weight", "blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b", "blocks.10.a", "norm.weight", "bias"]


@pytest.fixture
def collectives(world: World) -> Collectives:
    found = Connection(None, "auto", list)()
    assert found is not None
    return found


def test_layers_are_dealt_out_in_turn() -> None:
    assert partition(NAMES, 1) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert partition(NAMES, 2) == [[0, 3, 4, 6], [1, 2, 5, 7]]
    assert partition(NAMES, 6) == [[0], [1, 2], [3, 4], [5], [6], [7]]
    for count in (0, 7):
        with pytest.raises(ConfigError, match=f"fragments={count} must be 1 to 6"):
            partition(NAMES, count)


def test_a_16_bit_parameter_does_not_take_its_rounding_for_a_step() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    fragment = Fragment([parameter])
    fragment.outer.copy_(torch.tensor([1.001, 2.002]))
    fragment.take(fragment.outer)
    assert fragment.pseudo_gradient().tolist() == [0.0, 0.0] and fragment.outer.dtype == torch.float32
    assert Fragment([torch.zeros(2, dtype=torch.float64)]).outer.dtype == torch.float64


def test_steps_and_shares_in_proportion() -> None:
    assert inner_steps(40, [0.1, 0.2, 0.4]) == [40, 20, 10]
    assert inner_steps(40, [0.0, 0.2, 0.1]) == [40, 20, 40], "what was not measured counts as the fastest"
    assert inner_steps(40, [0.0, 0.0]) == [40, 40] and inner_steps(2, [1.0, 100.0]) == [2, 1]
    assert shares_of_work([100.0, 50.0]) == [1.0, 0.5]
    assert shares_of_work([100.0, 0.0], [1.0, 0.25]) == [1.0, 0.25] and shares_of_work([100.0, 0.0]) == [1.0, 1.0]
    assert shares_of_work([0.0, 0.0]) is None and shares_of_work([0.0], [0.5]) == [0.5]
    assert shares_of_work([1000.0, 1.0]) == [1.0, 1 / 16]


@pytest.mark.parametrize("kind", ["bf16", "fp16", "int8", "topk:ratio=0.3"])
def test_what_was_sent_and_what_is_left_is_what_was_to_be_sent(
    world: World, collectives: Collectives, kind: str
) -> None:
    """Over some rounds, summed over ranks."""
    shapes = [torch.Size([30, 7]), torch.Size([11])]
    sums: Any = sum_by(parse_compression(kind), shapes, torch.zeros(221, dtype=torch.float64))
    generators = [torch.Generator().manual_seed(rank) for rank in range(world.size)]
    asked, received = torch.zeros(221, dtype=torch.float64), torch.zeros(221, dtype=torch.float64)
    for number in range(4):
        everyone = [torch.randn(221, generator=generator, dtype=torch.float64) for generator in generators]
        flat = everyone[world.rank].clone()
        sums.sum_(flat, f"tests.{kind}.{number}", collectives)
        asked += sum(everyone)
        received += flat
    left = torch.cat([state["error"].reshape(-1) for state in sums.state_dict()])
    assert left.abs().max() > 0
    kept = collectives.all_reduce_async_(left.clone(), f"tests.{kind}.left").wait()
    torch.testing.assert_close(received + kept, asked, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "step"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_over_many_rounds_no_more_than_one_rounding_is_lost(
    world: World, collectives: Collectives, kind: str, step: float
) -> None:
    """200 equal rounds; what is sent is 3/4 of float32's."""
    sums: Any = sum_by(parse_compression(kind), [torch.Size([1000])], torch.zeros(1000))
    everyone = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)) / 100 for rank in range(world.size)]
    wanted = torch.stack(everyone).double().sum(dim=0)
    received = torch.zeros(1000, dtype=torch.float64)
    for number in range(200):
        flat = everyone[world.rank].clone()
        sent = sums.sum_(flat, f"tests.many.{kind}.{number}", collectives)
        received += flat
    assert sent == pytest.approx(3 / 4 * 2 * (world.size - 1) / world.size * 4 * 1000)
    # Half a unit in the last place of 8 or 11 bits, and the float32 roundings of 200 sums.
    assert (received - 200 * wanted).abs().max() <= (step + 200 * 2**-24) * wanted.abs().max()


def test_buffers(world: World, collectives: Collectives) -> None:
    """The weighted mean of floating ones, rank 0's of others; what is written later is that moment's."""
    mean, count, flag = torch.full((2,), float(world.rank)), torch.tensor(world.rank + 5), torch.tensor(world.rank == 0)
    shares = [2 * (rank + 1) / (world.size * (world.size + 1)) for rank in range(world.size)]
    taken = Buffers([mean, count, flag])
    mean.fill_(99.0)
    taken.combine(shares[world.rank], "tests.buffers", collectives)
    taken.write()
    wanted = sum(rank * share for rank, share in enumerate(shares))
    torch.testing.assert_close(mean, torch.full((2,), wanted))
    assert count == 5 and flag


def test_buffers_that_are_the_same_stay_as_they_are(world: World, collectives: Collectives) -> None:
    """A causal mask, also on a rank without a share; -inf in one that differs stays -inf."""
    mask = torch.triu(torch.full((3, 3), float("-inf")), 1)
    tenths, lost, empty = torch.full((5,), 0.1), torch.tensor([float("nan"), -0.0]), torch.zeros(0)
    differs = torch.tensor([float("-inf"), float(world.rank)])
    buffers = [mask, tenths, lost, empty, differs]
    wanted = [buffer.clone() for buffer in buffers[:4]]
    taken = Buffers(buffers)
    taken.combine(float(world.rank == 0), "tests.buffers", collectives)
    taken.write()
    for buffer, before in zip(buffers, wanted, strict=False):
        assert buffer.numpy().tobytes() == before.numpy().tobytes()
    assert differs.tolist() == [float("-inf"), 0.0]
