"""`TorchState` without resets: what a commit holds, what a rollback undoes, whose state all take over."""

import copy

import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World


def test_a_rollback_undoes_all_of_it(world: World) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sampler = hvd.elastic.ElasticSampler(range(10))
    losses: list[float] = []
    state = hvd.elastic.TorchState(
        model=model, optimizer=optimizer, schedule=schedule, sampler=sampler, losses=losses, step=0
    )

    def train() -> None:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
        sampler.record_batch(state.step, 1)
        state.losses.append(1.0)
        state.step += 1

    def facts() -> str:
        values = [model.state_dict(), optimizer.state_dict(), schedule.state_dict(), sampler.state_dict()]
        return repr([*values, state.losses, state.step])

    assert state.losses is losses  # until something is rolled back, the state has the user's own objects
    train()
    state.commit()
    committed = facts()
    for _ in range(2):
        train()
        assert facts() != committed
        state.restore()
        assert facts() == committed
        assert model.weight.grad is None
    assert state.schedule is schedule and schedule.optimizer is optimizer


def test_sync_shares_what_is_and_commits_it(world: World) -> None:
    """Values changed since the last commit too, such as an epoch read from a checkpoint before `run`."""
    model = nn.Linear(2, 1)
    sampler = hvd.elastic.ElasticSampler(range(10 * world.size))
    state = hvd.elastic.TorchState(model=model, sampler=sampler, epoch=0)
    nn.init.constant_(model.weight, world.rank + 1.0)
    state.epoch = 7 + world.rank
    sampler.record_batch(0, 2 + world.rank)
    state.sync()
    for _ in range(2):
        assert state.epoch == 7 and model.weight.tolist() == [[1.0, 1.0]]
        assert sampler.processed_num == 2 * world.size
        state.epoch = 100
        nn.init.zeros_(model.weight)
        sampler.record_batch(0, 1)
        state.restore()


def test_a_new_worker_is_followed_by_nobody(world: World) -> None:
    """Not even as rank 0."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0 + world.rank)
    sampler = hvd.elastic.ElasticSampler(range(10))
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler, who=world.rank)
    state.sync()
    nn.init.constant_(model.weight, float(world.rank))
    optimizer.param_groups[0]["lr"] = 1.0 + world.rank
    state.who = world.rank
    sampler.set_epoch(world.rank)
    last = world.size - 1
    if world.rank < last:  # as new ones
        state = hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler, who=world.rank)
    state.sync()
    assert state.who == last and sampler.epoch == last
    assert model.weight.tolist() == [[float(last)] * 2]
    assert optimizer.param_groups[0]["lr"] == 1.0 + last


def test_a_new_worker_compresses_like_the_others(world: World) -> None:
    """PowerSGD's ranks must start from one Q, and what a rank has not sent stays its own."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), compression="powersgd:rank=2")
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 64, generator=torch.Generator().manual_seed(world.rank))).square().mean().backward()
        optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict().get("compression", {}))
    is_new = world.rank == world.size - 1 > 0
    if is_new:
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), compression="powersgd:rank=2")
    hvd.elastic.TorchState(model=model, optimizer=optimizer).sync()
    now = optimizer.state_dict().get("compression", {})
    assert now.keys() == kept.keys()
    for index, of in now.items():
        torch.testing.assert_close(of["q"], kept[index]["q"], rtol=0, atol=0)
        assert ("error" in of) != is_new
        if not is_new:
            torch.testing.assert_close(of["error"], kept[index]["error"], rtol=0, atol=0)
