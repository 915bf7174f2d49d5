"""What is wrong with a call is said in Horovod's words: the same type and text from both libraries."""

import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World


def outcome(call: Callable[[Any], Any], library: Any) -> list[tuple[str, str]]:
    """The error that `call` raises and the warnings that it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(library)
            raised = []
        except Exception as error:
            raised = [(type(error).__name__, str(error))]
    return raised + [(warning.category.__name__, str(warning.message)) for warning in caught]


def optimizer(**options: Any) -> Callable[[Any], Any]:
    """Wrapping an optimizer of two parameters; `named` and `op` are looked up when called."""

    def call(library: Any) -> Any:
        torch.manual_seed(0)
        layer = nn.Linear(2, 2)
        given = {
            name: value(library, layer) if callable(value) else value for name, value in options.items()
        }  # fmt: skip
        return library.DistributedOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1), **given)

    return call


CASES: dict[str, Callable[[Any], Any]] = {
    "average is deprecated": lambda lib: lib.allreduce(torch.ones(1), average=True),
    "average beside op": lambda lib: lib.allreduce(torch.ones(1), average=False, op=lib.Sum),
    "transposed": lambda lib: lib.allreduce_(torch.ones(2, 3).t()),
    "transposed broadcast": lambda lib: lib.broadcast_(torch.ones(2, 3).t(), root_rank=0),
    "complex": lambda lib: lib.allreduce(torch.ones(1, dtype=torch.complex64)),
    "whole numbers reduced": lambda lib: lib.allreduce(torch.ones(1, dtype=torch.int16), op=lib.Sum),
    "Adasum of whole numbers": lambda lib: lib.allreduce(torch.ones(1, dtype=torch.int8), op=lib.Adasum),
    "splits of the wrong sum": lambda lib: lib.alltoall(torch.ones(4), splits=torch.tensor([3] * lib.size())),
    "splits of the wrong kind": lambda lib: lib.alltoall(torch.ones(4), splits="equal"),
    "rows that do not divide": lambda lib: lib.alltoall(torch.ones(lib.size() + 1)),
    "parameters of no kind": lambda lib: lib.broadcast_parameters(iter([]), root_rank=0),
    "set twice": lambda lib: lib.add_process_set([*range(lib.size())]),
    "set of words": lambda lib: lib.ProcessSet(["one"]),
    "timeline": lambda lib: lib.start_timeline("timeline.json"),
    "init beside itself": lambda lib: lib.init(process_sets=[lib.ProcessSet([*range(lib.size())])]),
    "passes": optimizer(backward_passes_per_step=0),
    "predivided sum": optimizer(gradient_predivide_factor=2.0, op=lambda lib, _: lib.Sum),
    "negative groups": optimizer(groups=-1),
    "groups of numbers": optimizer(groups=[[3]]),
    "in two groups": optimizer(groups=lambda _, layer: [[layer.weight], [layer.weight]]),
    "num_groups": optimizer(num_groups=2),
    "names alone": optimizer(named_parameters=["weight", "bias"]),
    "one name twice": optimizer(named_parameters=lambda _, layer: [("w", layer.weight), ("w", layer.bias)]),
}


@pytest.mark.parametrize("case", CASES)
def test_same_as_horovods(world: World, case: str) -> None:
    horovod = importlib.import_module("horovod.torch")
    ours, theirs = outcome(CASES[case], hvd), outcome(CASES[case], horovod)
    assert ours == theirs
    if world.size > 1 or case != "rows that do not divide":
        assert theirs, "this is no mistake"


def test_adasum_over_a_process_set(world: World) -> None:
    if world.size < 2:
        pytest.skip("needs 2 ranks to leave one out")
    horovod = importlib.import_module("horovod.torch")
    first = hvd.add_process_set([0])
    calls = (
        lambda lib: lib.allreduce(torch.ones(1), op=lib.Adasum, process_set=first),
        optimizer(op=lambda lib, _: lib.Adasum, process_set=first),
    )
    for call in calls:
        assert outcome(call, hvd) == outcome(call, horovod) != []
    hvd.barrier()
    assert hvd.remove_process_set(first)


def test_mismatched_shapes_and_roots(world: World) -> None:
    """Errors that the engine finds by comparing ranks."""
    if world.size < 2:
        pytest.skip("one rank cannot disagree with itself")
    horovod = importlib.import_module("horovod.torch")
    for call in (
        lambda lib: lib.allreduce(torch.ones(2 + world.rank), name="shapes"),
        lambda lib: lib.allreduce(torch.ones(2, dtype=[torch.float32, torch.float64][world.rank % 2]), name="dtypes"),
        lambda lib: lib.broadcast(torch.ones(2), root_rank=world.rank, name="roots"),
        lambda lib: lib.allgather(torch.ones(2, 2 + world.rank), name="rows"),
    ):
        # Which two ranks the text names depends on who came first.
        ours, theirs = (
            [(kind, re.sub(r"\d+", "N", text)) for kind, text in outcome(call, lib)] for lib in (hvd, horovod)
        )
        assert ours == theirs and ours[0][0] == "HorovodInternalError", ours


def test_empty_shared_says_what_it_takes(world: World) -> None:
    """Under Gloo too, where it is an ordinary tensor."""
    for shape, dtype in (((-1,), torch.float32), ((2,), torch.bool)):
        with pytest.raises(ValueError, match="lengths of 0 or more, and a dtype of float16"):
            hvd.empty_shared(*shape, dtype=dtype)
    assert torch.equal(hvd.empty_shared(2, 3), torch.zeros(2, 3))
