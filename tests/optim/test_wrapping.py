"""Wrapping changes nothing about an optimizer but the aggregation."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin


class Demanding(torch.optim.SGD):
    """A constructor that needs more than parameter groups (Horovod calls it again with those alone)."""

    def __init__(self, params: Any, *, teacher: nn.Module, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.teacher = teacher

    def zero_grad(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def test_class_state_defaults_and_attributes_are_kept(world: World) -> None:
    model = mlp()
    base = Demanding(model.parameters(), teacher=model, lr=0.1)
    base.state[model[0].weight]["seen"] = 3
    defaults = dict(base.defaults)
    optimizer = hvd.DistributedOptimizer(base, model.named_parameters())
    assert isinstance(optimizer, Demanding)
    assert type(optimizer).__name__ == "Demanding"
    assert optimizer.teacher is model
    assert optimizer.defaults == defaults
    assert optimizer.state[model[0].weight]["seen"] == 3
    optimizer.zero_grad()


def test_step_hooks_fire_once(world: World) -> None:
    model = mlp()
    calls: list[str] = []
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    base.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer = hvd.DistributedOptimizer(base)
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward()
    optimizer.step()
    assert calls == ["pre", "post"]


def _deep_copy(pair: Any) -> Any:
    return copy.deepcopy(pair)


def _pickle(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


def _torch_save(pair: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [_deep_copy, _pickle, _torch_save])
def test_copies_go_on_training_together(world: World, duplicate: Callable[[Any], Any]) -> None:
    model = mlp()
    groups = [[model[0].weight, model[4].bias]]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        model.named_parameters(),
        groups=groups,
        compression=hvd.Compression.fp16,
    )
    optimizer.set_backward_passes_per_step(2)
    first, second = batches(world, steps=2)
    for _ in range(2):
        square_loss(model, mine(world, first)).backward()
    optimizer.step()
    other, other_optimizer = duplicate((model, optimizer))
    assert isinstance(other_optimizer, torch.optim.AdamW)
    assert other_optimizer.backward_passes_per_step == 2
    for layers, stepper in ((model, optimizer), (other, other_optimizer)):
        stepper.zero_grad()
        for _ in range(2):
            square_loss(layers, mine(world, second)).backward()
        stepper.step()
    assert_same(model, other, tolerance=0)
    assert not torch.equal(model[0].weight, mlp()[0].weight)


def test_wrapping_again_replaces_the_hooks(world: World) -> None:
    model = mlp()
    reference = twin(model)
    first = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), op=hvd.Sum)
    second = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    third = hvd.DistributedOptimizer(second)
    assert third is second and type(third).__mro__.count(torch.optim.SGD) == 1
    for batch in batches(world, steps=2):
        model.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
    rounds = third.statistics.rounds
    assert rounds == 2 and first.statistics.rounds == 0


def test_two_optimizers_of_a_gan(world: World) -> None:
    makers, plain_makers = mlp(seed=0), mlp(seed=0)
    critic = nn.Linear(3, 1).double()
    nn.init.ones_(critic.weight)
    nn.init.zeros_(critic.bias)
    plain_critic = twin(critic)
    pair = (
        hvd.DistributedOptimizer(torch.optim.SGD(makers.parameters(), lr=0.1)),
        hvd.DistributedOptimizer(torch.optim.Adam(critic.parameters(), lr=0.1)),
    )
    plain_pair = (torch.optim.SGD(plain_makers.parameters(), lr=0.1), torch.optim.Adam(plain_critic.parameters(), 0.1))
    for batch in batches(world, steps=4):
        for maker, judge, (maker_step, judge_step), rows in (
            (makers, critic, pair, mine(world, batch)),
            (plain_makers, plain_critic, plain_pair, batch),
        ):
            judge_step.zero_grad()
            judge(maker(rows).detach()).pow(2).mean().backward()
            judge_step.step()
            maker_step.zero_grad()
            (-judge(maker(rows)).mean()).backward()
            maker_step.step()
    assert_same(makers, plain_makers)
    assert_same(critic, plain_critic)


@pytest.mark.parametrize("schedule_first", [True, False])
def test_schedulers_do_not_warn(world: World, schedule_first: bool) -> None:
    model = mlp()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if schedule_first:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        optimizer = hvd.DistributedOptimizer(optimizer)
        if not schedule_first:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        reference = twin(model)
        (batch,) = batches(world, steps=1)
        square_loss(model, mine(world, batch)).backward()
        optimizer.step()
        scheduler.step()
    square_loss(reference, batch).backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= parameter.grad  # type: ignore[arg-type]
    assert_same(model, reference)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_add_param_group(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model[:2].parameters(), lr=0.1), model[:2].named_parameters())
    for step, batch in enumerate(batches(world, steps=3)):
        if step == 1:
            optimizer.add_param_group({"params": list(model[2:].parameters()), "lr": 0.2})
        model.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        if step:
            assert_same_gradients(model, reference)


def test_clipping_needs_no_synchronize_and_old_habits_are_harmless(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step, batch in enumerate(batches(world, steps=3)):
        optimizer.zero_grad()
        plain.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        if step == 1:
            optimizer.synchronize()
        got = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        wanted = nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
        torch.testing.assert_close(got, wanted)
        if step == 1:
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        plain.step()
    assert_same(model, reference)


def test_adasum_of_equal_and_of_orthogonal_changes(world: World) -> None:
    if world.size & (world.size - 1):
        pytest.skip("Adasum needs a power of 2 of ranks")
    if world.backend == "gloo":
        pytest.skip("Horovod's engine has no Adasum over Gloo")
    same, apart = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(8))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([same, apart], lr=1.0), op=hvd.Adasum)
    (same.sum() + apart[world.rank]).backward()
    optimizer.step()
    # Adasum of equal vectors is the vector, of orthogonal ones their sum.
    torch.testing.assert_close(same.detach(), torch.full((4,), -1.0))
    torch.testing.assert_close(apart.detach(), -(torch.arange(8) < world.size).float())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backward_passes_per_step": 0}, "backward_passes_per_step must be > 0"),
        ({"gradient_predivide_factor": 2.0, "op": "Sum"}, "op != Average"),
        ({"groups": -1}, "groups should be a non-negative integer"),
        ({"groups": [[3]]}, "groups must consist of torch.Tensor"),
        ({"named_parameters": [3]}, "sequence of tuples"),
        ({"named_parameters": "twice"}, "must be unique"),
        ({"named_parameters": [("w", nn.Parameter(torch.zeros(1)))]}, "not named"),
        ({"weight": -1.0}, "weight=-1.0"),
    ],
)
def test_bad_arguments(world: World, options: dict[str, Any], text: str) -> None:
    model = mlp()
    options = dict(options)
    if options.get("op"):
        options["op"] = hvd.Sum
    if options.get("named_parameters") == "twice":
        options["named_parameters"] = [("w", p) for p in model.parameters()]
    with pytest.raises(ValueError, match=text):
        hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_num_groups_is_deprecated_as_in_horovod(world: World) -> None:
    with pytest.warns(DeprecationWarning, match="replaced by `groups`"):
        hvd.DistributedOptimizer(torch.optim.SGD(mlp().parameters(), lr=0.1), num_groups=2)
