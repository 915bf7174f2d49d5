"""The contract around the mathematics: what goes on exactly, what is refused, and what is left behind."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.checkpoint import pack, unpack
from hvdkit.errors import ConfigError, DivergenceError, HvdkitError
from hvdkit.local import Adaptive
from hvdkit.runtime import World, gather_objects
from tests.jobs import run_ranks
from tests.local.problems import adamw, assert_equal, make_model, sgd, train, trained


@pytest.mark.parametrize(
    "options",
    [
        {"sync_every": 5},
        {"sync_every": 6, "fragments": 2, "overlap_steps": 2, "compression": "int8"},
        {"sync_every": "2@0,4@4", "fragments": 2, "compression": "bf16"},
    ],
    ids=["plain", "streaming, int8", "scheduled, bf16"],
)
@pytest.mark.parametrize("stop", [4, 7])
def test_going_on_to_the_bit(world: World, options: dict[str, Any], stop: int) -> None:
    """From the middle of a round, or while a fragment is under way, by way of what a checkpoint can hold."""
    wanted = make_model()
    inner = adamw(wanted)
    with hvd.DiLoCo(wanted, inner, **options) as diloco:
        train(wanted, inner, world.rank, range(stop), lambda step: diloco.count(3 + step + world.rank))
        tensors: dict[str, torch.Tensor] = {}
        state = {"rounds": diloco.state_dict(), "model": dict(wanted.state_dict()), "inner": inner.state_dict()}
        packed = pack(state, tensors)
        train(wanted, inner, world.rank, range(stop, 14), lambda step: diloco.count(3 + step + world.rank))
    model = make_model()
    inner = adamw(model)
    state = unpack(packed, tensors)
    with hvd.DiLoCo(model, inner, **options) as diloco:
        model.load_state_dict(state["model"])
        inner.load_state_dict(state["inner"])
        diloco.load_state_dict(state["rounds"])
        train(model, inner, world.rank, range(stop, 14), lambda step: diloco.count(3 + step + world.rank))
    # Under Gloo, Horovod's engine adds three ranks in an order of its own.
    assert_equal(model, wanted, 0.0 if world.size <= 2 or world.backend == "mpi" else 1e-12)


def test_a_state_of_other_fragments_is_refused(world: World) -> None:
    model = make_model()
    with hvd.DiLoCo(model, adamw(model), fragments=2) as diloco:
        state = diloco.state_dict()
    with (
        hvd.DiLoCo(model, adamw(model), fragments=3) as diloco,
        pytest.raises(ValueError, match=r"the state has fragments of \[.*\] values"),
    ):
        diloco.load_state_dict(state)


def test_what_needs_the_context(world: World) -> None:
    """Before it there are no outer weights; after it the state can still be saved."""
    model = make_model()
    diloco = hvd.DiLoCo(model, adamw(model))
    uses: dict[str, Any] = {
        "synchronize": diloco.synchronize,
        "outer_model": lambda: diloco.outer_model().__enter__(),
        "state_dict": diloco.state_dict,
        "load_state_dict": lambda: diloco.load_state_dict({}),
    }
    for name, use in uses.items():
        with pytest.raises(RuntimeError, match=rf"{name}\(\) needs the context: enter it first"):
            use()
    with diloco:
        pass
    with diloco.outer_model():
        assert diloco.state_dict()["outer"]
    with pytest.raises(RuntimeError, match="needs the context"):
        diloco.load_state_dict(diloco.state_dict())


def test_adaptive_rounds_are_the_same_on_all_ranks(world: World) -> None:
    """A cost that nothing keeps to makes rounds grow; unless no drift is allowed: then they shrink."""
    lengths: dict[str, list[int]] = {}
    grows = Adaptive(2, 16, drift=1e9, cost=1e-9)
    # One worker does not drift: its rounds shrink where exchanges are cheap.
    shrinks = Adaptive(2, 16, drift=1e-9, cost=1e-9 if world.size > 1 else 0.9)
    for name, schedule in (("grows", grows), ("shrinks", shrinks)):
        model = make_model()
        inner = adamw(model)
        with hvd.DiLoCo(model, inner, sync_every=schedule) as diloco:
            diloco._state.clock.length = diloco._state.clock.own_length = 4
            train(model, inner, world.rank, range(60))
            lengths[name] = [int(line.split("rounds of ")[1].split()[0]) for line in diloco.news]
            assert all(line.startswith("step ") and "drift" in line for line in diloco.news)
    assert gather_objects(world, lengths) == [lengths] * world.size
    # The first decision is made before any exchange was timed.
    assert lengths["grows"][:4] == [2, 4, 8, 16] and set(lengths["grows"][4:]) <= {16}
    assert set(lengths["shrinks"]) == {2}


def test_proportional_pace(world: World) -> None:
    """The last rank is four times as slow: it does fewer steps in a round, and its work weighs as many."""
    model = make_model()
    inner = sgd(model)
    is_slow = world.rank == world.size - 1 and world.size > 1

    def dawdle(step: int) -> None:
        time.sleep(0.04 if is_slow else 0.01)

    with hvd.DiLoCo(model, inner, sync_every=8, pace="proportional") as diloco:
        train(model, inner, world.rank, range(8), dawdle)
        own = gather_objects(world, diloco._state.clock.own_length)
        train(model, inner, world.rank, range(own[world.rank]), dawdle)
        assert diloco._state.clock.done == 0, "all came to the end of the second round"
    if world.size > 1:
        assert max(own) == 8 and 1 <= own[-1] <= 5 and own[-1] < min(own[:-1])
    else:
        assert own == [8]


def test_the_outer_model(world: World) -> None:
    model = make_model()
    inner = adamw(model)
    begin = copy.deepcopy(model.state_dict())
    with hvd.DiLoCo(model, inner, sync_every=10) as diloco:
        train(model, inner, world.rank, range(3))
        own = copy.deepcopy(model.state_dict())
        with diloco.outer_model():
            assert_equal_states(model.state_dict(), begin)
        assert_equal_states(model.state_dict(), own)
        diloco.synchronize()
        after = [tensor.sum().item() for tensor in model.state_dict().values()]
        assert gather_objects(world, after) == [after] * world.size


def assert_equal_states(mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, tensor in mine.items():
        assert torch.equal(tensor, wanted[name]), name


def test_nothing_is_left_behind(world: World) -> None:
    """Neither after a clean exit nor after an exception on one rank alone, which waits for nobody."""
    model = make_model()
    inner = adamw(model)
    with hvd.LocalSGD(model, inner, sync_every=2) as rounds:
        train(model, inner, world.rank, range(3))
    train(model, inner, world.rank, range(5))
    assert rounds.statistics.steps == 3 and not inner._optimizer_step_post_hooks
    with pytest.raises(KeyError), hvd.LocalSGD(model, inner, sync_every=50):
        train(model, inner, world.rank, range(world.rank))
        raise KeyError("of the user's")
    assert not inner._optimizer_step_post_hooks


def test_every_rank_begins_as_rank_0(world: World) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(world.rank)
    wanted = make_model()
    with hvd.DiLoCo(model, adamw(model)):
        pass
    assert_equal(model, wanted, 0.0)


def test_bytes_are_counted(world: World) -> None:
    """2(p-1)/p of the trained values, 4 bytes each, in each of three rounds: 1/5 of synchronous training's."""
    model = make_model(dtype=torch.float32)
    inner = adamw(model)
    with hvd.DiLoCo(model, inner, sync_every=5) as diloco:
        train(model, inner, world.rank, range(15))
    one = 2 * (world.size - 1) / world.size * 4 * sum(p.numel() for p in trained(model))
    found = diloco.statistics
    assert (found.rounds, found.bytes_sent, found.synchronous_bytes) == (3, 3 * one, 15 * one)
    if world.size > 1:
        assert "1/5 of synchronous training's" in found.lines()[0]


def test_arguments(world: World) -> None:
    model = make_model()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"sync_every": 0}, "must be 1 or more steps"),
        ({"fragments": 99}, "fragments=99 must be 1 to"),
        ({"overlap_steps": -1}, "overlap_steps=-1 must be 0 or more"),
        ({"mixing": 1.0}, r"mixing=1.0 must be in \[0, 1\)"),
        ({"compression": "zip"}, "compression 'zip' is not one of"),
        ({"level": "rack"}, "level='rack' must be"),
        ({"level": [0] * (world.size + 1)}, "must have a node's number for each of"),
        ({"pace": "hasty"}, "pace='hasty' must be"),
        ({"pace": "proportional", "level": "nodes"}, "the ranks of a node step together"),
        ({"strategy": "pigeon"}, "pigeon"),
        ({"sync_every": 10.5}, "sync_every='10.5' must be a number of steps"),
        ({"sync_every": None}, "sync_every='None' must be a number of steps"),
        ({"outer": torch.optim.SGD(trained(model)[1:], lr=1.0)}, "made for the parameters that the inner one trains"),
    ]
    for options, words in bad:
        with pytest.raises(ConfigError, match=words):
            hvd.DiLoCo(model, adamw(model), **options)
    with pytest.raises(ConfigError, match=r"embedding\.weight require gradients and are not in the inner optimizer"):
        hvd.DiLoCo(model, torch.optim.SGD(trained(model)[1:], lr=0.1))
    inner = adamw(model)
    with pytest.raises(ConfigError, match="the outer optimizer is the inner one"):
        hvd.DiLoCo(model, inner, inner)
    with pytest.raises(ConfigError, match="that are not the model's"):
        hvd.DiLoCo(model.layers, adamw(model))
    with pytest.raises(ValueError, match="tokens=-1 is not a weight"):
        hvd.DiLoCo(model, adamw(model)).count(-1)


def test_an_inner_optimizer_that_averages_gradients(world: World) -> None:
    """Only after synchronous steps, within `no_sync()`."""
    model = make_model()
    inner = hvd.DistributedOptimizer(adamw(model), [(n, p) for n, p in model.named_parameters() if p.requires_grad])
    rounds = hvd.LocalSGD(model, inner, sync_every=2)
    with pytest.raises(ConfigError, match="the inner optimizer is a DistributedOptimizer"), rounds:
        pass
    train(model, inner, world.rank, range(2))
    with inner.no_sync(), rounds:
        train(model, inner, world.rank, range(3))
    assert rounds.statistics.steps == 3


def test_counting_on_some_ranks_only(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank is all ranks")
    model = make_model()
    inner = adamw(model)
    with (
        pytest.raises(DivergenceError, match=r"rank 0 calls count\(\), rank \d+ does not"),
        hvd.DiLoCo(model, inner, sync_every=2) as diloco,
    ):
        train(model, inner, world.rank, range(2), lambda step: None if world.rank else diloco.count(5))


@pytest.mark.parametrize("overlap_steps", [0, 1])
def test_two_in_one_program(world: World, overlap_steps: int) -> None:
    """Each goes on by itself; a rank that takes part in the exchange of one while others are at the other is told."""
    one, other, alone = make_model(), make_model(), make_model()
    one_inner, other_inner, inner = adamw(one), sgd(other), adamw(alone)
    with hvd.DiLoCo(alone, inner, sync_every=2, overlap_steps=overlap_steps):
        train(alone, inner, world.rank, range(5))

    def both(steps: int) -> None:
        first = hvd.DiLoCo(one, one_inner, sync_every=2, overlap_steps=overlap_steps)
        with first, hvd.LocalSGD(other, other_inner, sync_every=2):
            for step in range(steps):
                train(one, one_inner, world.rank, [step])
                train(other, other_inner, world.rank, [step])

    both(5)
    assert_equal(one, alone, 0.0 if world.size <= 2 or world.backend == "mpi" else 1e-12)
    if world.size > 1 and not overlap_steps:
        with pytest.raises(DivergenceError, match=r"rank 0 is at exchange \d+ of .* number \d+, rank 1 at exchange"):
            both(5 + 4 * min(world.rank, 1))


def test_ranks_that_disagree(world: World) -> None:
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    is_odd = world.rank == world.size - 1
    model = make_model()
    with pytest.raises(DivergenceError, match=rf"on sync_every: rank 0 has 5, rank {world.size - 1} has 7; every rank"):
        hvd.DiLoCo(model, adamw(model), sync_every=7 if is_odd else 5)
    with pytest.raises(ConfigError, match=rf"must be 1 or more steps \(on rank {world.size - 1} of {world.size}\)"):
        hvd.DiLoCo(model, adamw(model), sync_every=0 if is_odd else 5)
    other = make_model(layers=4 if is_odd else 3)
    with pytest.raises(DivergenceError, match=r"on parameter layers\.3\..*: rank 0 has nothing"):
        hvd.DiLoCo(other, adamw(other))


@pytest.mark.parametrize("overlap_steps", [0, 1])
def test_weights_that_are_lost_are_one_error_on_all_ranks(world: World, overlap_steps: int) -> None:
    model = make_model()
    inner = adamw(model)
    last = world.size - 1
    with (
        pytest.raises(HvdkitError, match=rf"the weights of rank {last} of {world.size} hold NaN"),
        hvd.DiLoCo(model, inner, sync_every=2, overlap_steps=overlap_steps),
    ):
        if world.rank == last:
            nn.init.constant_(model.layers[0].gain, float("nan"))
        train(model, inner, world.rank, range(4))


PROGRAM = """
import sys, torch, hvdkit as hvd
from tests.local.problems import adamw, make_model, train
hvd.init()
model = make_model()
inner = adamw(model)
with hvd.DiLoCo(model, inner, sync_every=4, overlap_steps=2):
    train(model, inner, hvd.rank(), range(5))
    if hvd.rank() == 1:
        raise RuntimeError("of one rank")
    train(model, inner, hvd.rank(), range(50))
"""


@pytest.mark.launch
def test_an_exception_on_one_rank_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    root = str(Path(__file__).resolve().parents[2])
    result = run_ranks(2, tmp_path / "program.py", timeout_s=60, env={"PYTHONPATH": root})
    assert result.returncode != 0 and "of one rank" in result.stdout + result.stderr
