"""Parameters of every kind: frozen, empty, scalar, complex, channels last, moved to another dtype after wrapping."""

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin


def test_all_frozen(world: World) -> None:
    """Nothing to aggregate, but every call works; unfreezing them between steps is noticed at once."""
    model = mlp().requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(model.parameters(), lr=0.1))
    before = twin(model)
    optimizer.zero_grad()
    optimizer.step()
    optimizer.synchronize()
    assert_same(model, before, tolerance=0)
    reference = twin(model).requires_grad_()
    model.requires_grad_()
    optimizer.zero_grad()
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward()
    square_loss(reference, batch).backward()
    assert_same_gradients(model, reference)


def test_alternating_halves(world: World) -> None:
    """Everything that was trained is frozen and the rest unfrozen, so that no old hook fires."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for step, batch in enumerate(batches(world, steps=4)):
        for layers in (model, reference):
            layers[:2].requires_grad_(step % 2 == 0)
            layers[2:].requires_grad_(step % 2 == 1)
        optimizer.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
        optimizer.step()
        reference.load_state_dict(model.state_dict())


@pytest.mark.parametrize("bucket_bytes", [0, 2**20])
def test_empty_scalar_and_complex(world: World, bucket_bytes: int) -> None:
    parameters = [
        nn.Parameter(torch.zeros(0, 3)),
        nn.Parameter(torch.tensor(2.0)),
        nn.Parameter(torch.zeros(2, 2, dtype=torch.complex128)),
        nn.Parameter(torch.tensor(1j, dtype=torch.complex64)),
    ]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=1.0), bucket_bytes=bucket_bytes)
    for _ in range(2):
        optimizer.zero_grad()
        scale = world.rank + 1
        terms = [(parameter * (scale + 1j * scale * parameter.is_complex())).real.sum() for parameter in parameters]
        torch.stack([term.double() for term in terms]).sum().backward()
        mean = (world.size + 1) / 2
        for parameter in parameters:
            assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype
            wanted = mean - 1j * mean if parameter.is_complex() else mean
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, wanted))
        optimizer.step()


def test_only_an_empty_parameter(world: World) -> None:
    empty = nn.Parameter(torch.zeros(0))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([empty], lr=1.0))
    for _ in range(2):
        optimizer.zero_grad()
        empty.sum().backward()
        assert empty.grad is not None and empty.grad.shape == (0,)
        optimizer.step()


def test_channels_last(world: World) -> None:
    """Horovod refuses gradients that are not contiguous."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).double().to(memory_format=torch.channels_last)
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    images = torch.randn(2 * world.size, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        reference.zero_grad()
        model(images.chunk(world.size)[world.rank]).pow(2).mean().backward()
        reference(images).pow(2).mean().backward()
        assert_same_gradients(model, reference)
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in model.parameters())
        optimizer.step()
        reference.load_state_dict(model.state_dict())


def test_moved_to_another_dtype_after_wrapping(world: World) -> None:
    """`model.double()` keeps the parameters and changes what they hold."""
    model = mlp(torch.float32)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for step, batch in enumerate(batches(world, steps=4)):
        if step == 2:
            model.double()
        reference = twin(model).to(model[0].weight.dtype)
        rows = batch.to(model[0].weight.dtype)
        optimizer.zero_grad()
        square_loss(model, mine(world, rows)).backward()
        square_loss(reference, rows).backward()
        assert_same_gradients(model, reference, tolerance=1e-12 if step >= 2 else 1e-5)
        optimizer.step()


def test_a_bucket_that_no_rank_uses(world: World) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(6, 6).double() for _ in range(3))
    optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(layers.parameters(), lr=0.1), bucket_bytes=0)
    reference = twin(layers)
    plain = torch.optim.AdamW(reference.parameters(), lr=0.1)
    for step, batch in enumerate(batches(world, steps=4)):
        for model, stepper, rows in ((layers, optimizer, mine(world, batch)), (reference, plain, batch)):
            stepper.zero_grad()
            for number, layer in enumerate(model):
                if number != step % 3:
                    rows = torch.tanh(layer(rows))
            rows.pow(2).sum(dim=-1).mean().backward()
        assert_same_gradients(layers, reference)
        optimizer.step()
        plain.step()
    assert_same(layers, reference)


def test_weights_shared_between_layers(world: World) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    model[2].weight = model[0].weight
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    for batch in batches(world, steps=2):
        optimizer.zero_grad()
        reference.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
