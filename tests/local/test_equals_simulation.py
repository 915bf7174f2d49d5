"""Ranks that train with DiLoCo or Local SGD end where a simulation of all of them in one process ends."""

from typing import Any

import pytest
import torch

import hvdkit as hvd
from hvdkit.local.fragments import partition
from hvdkit.runtime import World
from tests.local.problems import STEPS, Simulation, adamw, assert_equal, make_model, sgd, train, trained

NAMES = [name for name, parameter in make_model().named_parameters() if parameter.requires_grad]


def in_fragments(count: int) -> list[list[str]]:
    return [[NAMES[index] for index in part] for part in partition(NAMES, count)]


@pytest.mark.parametrize("sync_every", [1, 5, 7, 50])
def test_diloco(world: World, sync_every: int) -> None:
    wanted = Simulation(world.size, in_fragments(1)).run(STEPS, sync_every)
    model = make_model()
    inner = adamw(model)
    with hvd.DiLoCo(model, inner, sync_every=sync_every) as diloco:
        train(model, inner, world.rank, range(1, STEPS + 1))
    assert_equal(model, wanted)
    assert diloco.statistics.steps == STEPS


@pytest.mark.parametrize(
    ("fragments", "overlap", "mixing"), [(2, 0, 0.5), (4, 0, 0.5), (1, 2, 0.5), (2, 1, 0.25), (3, 2, 0.0), (2, 9, 0.5)]
)
def test_streaming(world: World, fragments: int, overlap: int, mixing: float) -> None:
    """Fragments in turn, results some steps late; an overlap that is too long ends when the next exchange begins."""
    wanted = Simulation(world.size, in_fragments(fragments), overlap=overlap, mixing=mixing).run(STEPS, 6)
    model = make_model()
    inner = adamw(model)
    options: dict[str, Any] = {"fragments": fragments, "overlap_steps": overlap, "mixing": mixing}
    with hvd.DiLoCo(model, inner, sync_every=6, **options):
        train(model, inner, world.rank, range(1, STEPS + 1))
    assert_equal(model, wanted)


def test_an_outer_optimizer_of_ones_own(world: World) -> None:
    wanted = Simulation(world.size, in_fragments(1), lr=0.3, momentum=0.0).run(STEPS, 4)
    model = make_model()
    inner, outer = adamw(model), torch.optim.SGD(trained(model), lr=0.3)
    with hvd.DiLoCo(model, inner, outer, sync_every=4):
        train(model, inner, world.rank, range(1, STEPS + 1))
    assert_equal(model, wanted)


def test_local_sgd_in_every_step_is_synchronous_sgd(world: World) -> None:
    model, wanted = make_model(), make_model()
    inner, synchronous = sgd(model), hvd.DistributedOptimizer(sgd(wanted))
    train(wanted, synchronous, world.rank, range(STEPS))
    with hvd.LocalSGD(model, inner, sync_every=1):
        train(model, inner, world.rank, range(STEPS))
    assert_equal(model, wanted)


def test_post_local_sgd(world: World) -> None:
    """Some synchronous steps, then rounds: against the simulation that begins where the first part ended."""
    model = make_model()
    inner = hvd.DistributedOptimizer(sgd(model))
    train(model, inner, world.rank, range(-4, 1))
    simulated = Simulation(world.size, in_fragments(1), inner=sgd, lr=1.0, momentum=0.0)
    for other in (*simulated.models, make_model()):
        other.load_state_dict(model.state_dict())
    for name, parameter in model.named_parameters():
        simulated.outer[name].data.copy_(parameter.data)
    wanted = simulated.run(STEPS, 4)
    with inner.no_sync(), hvd.LocalSGD(model, inner, sync_every=4):
        train(model, inner, world.rank, range(1, STEPS + 1))
    assert_equal(model, wanted)


def test_one_worker_averaging_alone_is_plain_training_to_the_bit(world: World) -> None:
    """Every rank a world of its own would be; with several, each has the same data."""
    model, wanted = make_model(dtype=torch.float32), make_model(dtype=torch.float32)
    inner = adamw(model)
    train(wanted, adamw(wanted), 0, range(STEPS))
    with hvd.DiLoCo(model, inner, torch.optim.SGD(trained(model), lr=1.0), sync_every=4):
        train(model, inner, 0, range(STEPS))
    # Three thirds of a number are not always the number.
    assert_equal(model, wanted, 0.0 if world.size in (1, 2) else 1e-5)


def test_weights_by_tokens(world: World) -> None:
    simulated = Simulation(world.size, in_fragments(1))
    for number in range(1, 6):
        for worker in range(world.size):
            simulated.step(worker, number, weight=10.0 * worker + number)
    simulated.apply(0, simulated.mean(0))
    model = make_model()
    inner = adamw(model)
    with hvd.DiLoCo(model, inner, sync_every=5) as diloco:
        train(model, inner, world.rank, range(1, 6), lambda step: diloco.count(10.0 * world.rank + step))
    assert_equal(model, simulated.models[0])


def test_ranks_with_different_numbers_of_steps(world: World) -> None:
    """Rank r has 3 + 4 r steps: those that have none left go on taking part, with nothing to add."""
    simulated = Simulation(world.size, in_fragments(1))
    most = 3 + 4 * (world.size - 1)
    for number in range(1, most + 1):
        for worker in range(world.size):
            if number <= 3 + 4 * worker:
                simulated.step(worker, number)
        if number % 2 == 0:
            simulated.apply(0, simulated.mean(0))
    simulated.apply(0, simulated.mean(0))
    model = make_model()
    inner = adamw(model)
    with hvd.DiLoCo(model, inner, sync_every=2):
        train(model, inner, world.rank, range(1, 3 + 4 * world.rank + 1))
    assert_equal(model, simulated.models[0])


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 0], [0, 1, 2]], ids=str)
def test_two_levels(world: World, nodes: list[int]) -> None:
    """A node's ranks do what one worker does on the mean of their losses."""
    mine = nodes[: world.size]
    numbers = sorted(set(mine))
    simulated = Simulation(len(numbers), in_fragments(1), inner=sgd)
    for number in range(1, 9):
        for worker, node in enumerate(numbers):
            ranks = [rank for rank in range(world.size) if mine[rank] == node]
            model, inner = simulated.models[worker], simulated.inners[worker]
            inner.zero_grad()
            for rank in ranks:
                train_backward(model, rank, number, len(ranks))
            inner.step()
            simulated.weights[0][worker] += len(ranks)
        if number % 4 == 0:
            simulated.apply(0, simulated.mean(0))
    model = make_model()
    inner = sgd(model)
    with hvd.DiLoCo(model, inner, sync_every=4, level=mine) as diloco:
        train(model, inner, world.rank, range(1, 9))
    assert_equal(model, simulated.models[0])
    assert type(inner) is torch.optim.SGD and not any(name in vars(inner) for name in ("_reducer", "_settings"))
    with diloco:
        train(model, inner, world.rank, range(4))
    train(model, inner, world.rank, [0] * world.rank)  # gradients are local again
    if 1 < len(numbers) < world.size:
        users_own = hvd.add_process_set([rank for rank in range(world.size) if mine[rank] == 0])  # not there any more
        hvd.barrier()
        assert hvd.remove_process_set(users_own)


def train_backward(model: torch.nn.Module, rank: int, step: int, ranks: int) -> None:
    from tests.local.problems import tokens_of
    from tests.sharding.problems import loss_of

    (loss_of(model, tokens_of(rank, step)) / ranks).backward()
