"""Nested state goes into JSON and safetensors and comes back exactly: for every optimizer of torch."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from hvdkit.checkpoint import pack, unpack
from hvdkit.errors import CheckpointError
from hvdkit.runtime import launch_info


def through_files(state: Any) -> Any:
    """`state` after the bytes that would lie on disk."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack(state, tensors))
    return unpack(json.loads(text), load(save(tensors)))


def assert_equal(left: Any, right: Any, place: str = "state") -> None:
    """Same types, same order of keys, same bits."""
    assert type(left) is type(right), place
    if isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), place
        assert torch.equal(
            left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8)
        ), place
    elif isinstance(left, dict):
        assert [(type(key), key) for key in left] == [(type(key), key) for key in right], place
        for key in left:
            assert_equal(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), place
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{place}.{number}")
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right), place
    else:
        assert left == right, place


def test_every_kind_of_item_comes_back_exactly() -> None:
    dtypes = [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    ]
    state = {
        "numbers": [0, -1, 2**70, 0.1, 1e-320, -0.0, math.inf, math.nan, True, False, None],
        "texts": ["", "ä\n\u20ac\U0001f600", "__tensor__"],
        "tensors": [torch.arange(6).view(2, 3).to(dtype) for dtype in dtypes],
        "shapes": [torch.tensor(1.5), torch.empty(0, 3), torch.ones(2, 3).T, torch.arange(10)[::3]],
        "special": torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
        "tuples": (1, (2, [3, ()]), {}),
        0: {1: {"1": "a", 1: "b", True + 1: "c"}},
        "__tensor__": {"__tuple__": [1], "__items__": {"__tensor__": "x"}},
        "": torch.ones(1),
    }
    assert_equal(through_files(state), state)
    for item in (5, "text", [], (), torch.ones(2)):
        assert_equal(through_files(item), item)


def test_keys_whose_paths_look_alike_keep_their_own_tensors() -> None:
    a, b, c, d = (torch.full((2,), float(number)) for number in range(4))
    state = {"a": {"b": a}, "a.b": b, "x": {"0": c, 0: d}, ".y": a, "y": b}
    assert_equal(through_files(state), state)


def test_packed_tensors_do_not_follow_the_living_ones() -> None:
    living = torch.zeros(3, requires_grad=True)
    tensors: dict[str, torch.Tensor] = {}
    packed = pack({"a": living, "b": living}, tensors)
    with torch.no_grad():
        living.add_(1)
    assert_equal(unpack(packed, tensors), {"a": torch.zeros(3), "b": torch.zeros(3)})


class Odd:
    pass


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"optimizer": {"state": [1, Odd()]}}, r"optimizer\.state\.1: a Odd cannot be kept"),
        ({"a": {1, 2}}, "a: a set cannot be kept"),
        ({"a": {(1, 2): 3}}, "a: only strings and whole numbers can be keys"),
        ({1.5: 3}, "the state: only strings and whole numbers"),
        (b"bytes", "a bytes cannot be kept"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_place(state: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        pack(state, {})


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
VARIANTS: dict[str, Make] = {
    "SGD-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam-amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, lr=torch.tensor(0.01)),
    "AdamW-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "RMSprop-centered": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1),  # with its default of 1 it diverges here
    "LBFGS-wolfe": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"),
    "AdamW-groups": lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:], "lr": 0.5, "weight_decay": 0.0}]),
}


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            rows = torch.tensor([step % 5, 2, 4])
            loss = (model(rows) - step).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.skipif(launch_info().size > 1, reason="communicates nothing, and torch's first step takes seconds")
@pytest.mark.parametrize("name", sorted({*OPTIMIZERS, *VARIANTS}))
def test_an_optimizer_goes_on_exactly_where_it_was(name: str) -> None:
    make = {**OPTIMIZERS, **VARIANTS}[name]
    torch.manual_seed(0)
    model: nn.Module = nn.Embedding(5, 3, sparse=name == "SparseAdam")
    if name not in ("SparseAdam", "Muon"):  # sparse gradients only; matrices only
        model = nn.Sequential(model, nn.Linear(3, 3))
    optimizer = make(list(model.parameters()))
    run(model, optimizer, 3)

    state = copy.deepcopy(optimizer.state_dict())
    assert_equal(through_files(state), state)

    twin = copy.deepcopy(model)
    continued = make(list(twin.parameters()))
    continued.load_state_dict(through_files(state))
    run(model, optimizer, 3)
    run(twin, continued, 3)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.isfinite().all() and torch.equal(parameter, other)
    assert_equal(continued.state_dict()["state"], optimizer.state_dict()["state"])
