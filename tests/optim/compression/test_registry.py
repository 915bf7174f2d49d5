"""Names and options, as scripts and command lines give them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import hvdkit as hvd
from hvdkit.optim import compression
from hvdkit.optim.compression import Compression, Int8, PowerSGD, TopK, names, parse_compression, register, resolve
from hvdkit.runtime import World


@dataclass(frozen=True)
class Halving:
    """A user's own kind: adds half of it all. Only its options matter here."""

    share: float = 0.5
    is_loud: bool = False
    name: ClassVar[str] = "halving"

    def for_bucket(self, shapes: Sequence[torch.Size], dtype: torch.dtype, device: Any) -> Any:
        return Int8().for_bucket(shapes, dtype, device)


@pytest.fixture
def halving() -> Iterator[None]:
    register("halving", Halving)
    yield
    del Compression.halving  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("none", Compression.none),
        ("fp16", Compression.fp16),
        ("bf16", Compression.bf16),
        ("int8", Int8()),
        ("int8:block_values=256", Int8(256)),
        ("topk", TopK()),
        ("topk: ratio = 0.5", TopK(0.5)),
        ("powersgd", PowerSGD()),
        ("powersgd:rank=2", PowerSGD(2)),
    ],
)
def test_parse(text: str, wanted: Any) -> None:
    assert parse_compression(text) == wanted == resolve(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "'' is not one of none, fp16, bf16, int8, topk, powersgd"),
        ("PowerSGD", "'PowerSGD' is not one of none, fp16"),
        ("_x", "is not one of"),
        ("powersgd:", "it has: rank=..."),
        ("powersgd:4", "it has: rank=..."),
        ("powersgd:ratio=4", "it has: rank=..."),
        ("powersgd:rank=1,rank=2", "once"),
        ("powersgd:name=x", "it has: rank=..."),
        ("powersgd:rank=four", "rank='four' is no int"),
        ("powersgd:rank=0", "rank=0 must be 1 or more"),
        ("topk:ratio=2", "ratio=2.0 must be above 0"),
        ("fp16:bits=8", "it has: none"),
    ],
)
def test_parse_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_compression(text)
    assert message in str(caught.value)


def test_resolve_takes_what_users_pass() -> None:
    assert resolve(hvd.Compression.powersgd) == PowerSGD(rank=4)
    assert resolve(hvd.Compression.powersgd(rank=2)) == PowerSGD(rank=2)
    assert resolve(hvd.Compression.int8) == Int8()
    assert resolve(hvd.Compression.fp16) is hvd.Compression.fp16
    assert isinstance(resolve(Compression.topk), compression.BucketCompressor)
    assert not isinstance(resolve(Compression.bf16), compression.BucketCompressor)
    for wrong in (None, 3, object()):
        with pytest.raises(TypeError, match=r"hvd\.Compression\.powersgd"):
            resolve(wrong)


def test_register(halving: None) -> None:
    assert names()[-1] == "halving"
    assert parse_compression("halving:share=0.25,is_loud=true") == Halving(0.25, True)
    assert parse_compression("halving:is_loud=false") == Halving()
    assert Compression.halving is Halving  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="must be true or false"):
        parse_compression("halving:is_loud=1")
    for taken in ("halving", "int8", "_own", "two words"):
        with pytest.raises(ValueError, match="must be a new identifier"):
            register(taken, Halving)
    with pytest.raises(TypeError, match="it needs compress and decompress, or for_bucket"):
        register("nothing", object())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_bf16_keeps_float32s_range(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, 1 + 2.0**-12, 3e38 if dtype != torch.float16 else 6e4, 0.0, 1e-30]).to(dtype)
    sent, context = Compression.bf16.compress(tensor)
    assert sent.element_size() == 2
    result = Compression.bf16.decompress(sent, context)
    assert result.dtype == dtype
    torch.testing.assert_close(result, tensor, rtol=2.0**-8, atol=0)
    assert torch.isfinite(result).all()


def test_bf16_sums_over_ranks(world: World) -> None:
    """By every way to pass an elementwise compressor; 1 + 2^-12 rounds to 1."""
    mine = torch.tensor([1 + 2.0**-12, 256.0 * (world.rank + 1), 1e38])
    result = hvd.allreduce(mine, op=hvd.Sum, name="bf16", compression=hvd.Compression.bf16)
    assert result.dtype == torch.float32
    wanted = torch.tensor([world.size, 256.0 * sum(range(1, world.size + 1)), 1e38 * world.size])
    torch.testing.assert_close(result, wanted, rtol=2.0**-7, atol=0)
    model = torch.nn.Linear(3, 1, bias=False)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), compression=hvd.Compression.bf16)
    (model(torch.ones(1, 3)) * (1 + 2.0**-12)).sum().backward()
    optimizer.synchronize()
    assert torch.equal(model.weight.grad, torch.ones(1, 3)) or world.size == 1
