"""N ranks give what one process gives on the union of their batches."""

import time
from typing import Any

import pytest
import torch
from torch import nn

import hvdkit as hvd
from hvdkit.runtime import World
from tests.optim.problems import assert_same, assert_same_gradients, batches, mine, mlp, square_loss, twin

OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.05}),
    (torch.optim.RMSprop, {"lr": 0.01}),
]
if tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 4):  # before, not for CPUs
    OPTIMIZERS.append((torch.optim.AdamW, {"lr": 0.01, "fused": True}))


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_every_step_of_training(world: World, kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(kind(model.parameters(), **options), model.named_parameters())
    plain = kind(reference.parameters(), **options)
    for batch in batches(world, steps=6):
        optimizer.zero_grad()
        square_loss(model, mine(world, batch)).backward()
        plain.zero_grad()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)  # aggregated as soon as backward() has returned
        optimizer.step()
        plain.step()
    assert_same(model, reference)


@pytest.mark.parametrize("bucket_bytes", [0, 100, 600])
def test_many_buckets(world: World, bucket_bytes: int) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=bucket_bytes)
    for batch in batches(world, steps=3):
        optimizer.zero_grad(set_to_none=False)
        square_loss(model, mine(world, batch)).backward()
        reference.zero_grad()
        square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)


def test_options_of_horovod_leave_the_average_as_it_is(world: World) -> None:
    layers = mlp()
    for options in (
        {"groups": 2},
        {"groups": [[layers[0].weight, layers[4].bias], [layers[2].weight]]},
        {"gradient_predivide_factor": 4.0},
        {"gradient_predivide_factor": 2.0, "groups": 3},
    ):
        model, reference = layers, twin(layers)
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **options)
        for batch in batches(world, steps=2):
            optimizer.zero_grad()
            square_loss(model, mine(world, batch)).backward()
            reference.zero_grad()
            square_loss(reference, batch).backward()
            assert_same_gradients(model, reference)


def test_sum_is_size_times_the_average(world: World) -> None:
    model = mlp()
    reference = twin(model)
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), op=hvd.Sum)
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward()
    (square_loss(reference, batch) * world.size).backward()
    assert_same_gradients(model, reference)


def test_fp16_compression_rounds_to_half(world: World) -> None:
    model = mlp(torch.float32)
    reference = twin(model)
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), compression=hvd.Compression.fp16)
    (batch,) = batches(world, steps=1, dtype=torch.float32)
    square_loss(model, mine(world, batch)).backward()
    square_loss(reference, batch).backward()
    assert_same_gradients(model, reference, tolerance=4e-3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_compressor_of_ones_own_gets_whole_parameters(world: World) -> None:
    shapes = []

    class Doubling(hvd.compression.Compressor):
        @staticmethod
        def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
            shapes.append(tuple(tensor.shape))
            return tensor * 2, None

        @staticmethod
        def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
            return tensor / 2

    model = mlp()
    reference = twin(model)
    hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), compression=Doubling)
    (batch,) = batches(world, steps=1)
    square_loss(model, mine(world, batch)).backward()
    square_loss(reference, batch).backward()
    assert_same_gradients(model, reference)
    if world.size > 1:
        assert sorted(shapes) == sorted(tuple(p.shape) for p in model.parameters())


def test_mixed_float_dtypes(world: World) -> None:
    torch.manual_seed(0)
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.complex64]
    parameters = [nn.Parameter(torch.zeros(5, dtype=kind)) for kind in kinds for _ in range(2)]
    hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.1))
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = None
        value = float(world.rank + 1)
        loss = sum((p * torch.full_like(p, value)).real.sum().double() for p in parameters)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        for parameter in parameters:
            mean = (world.size + 1) / 2
            assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype
            assert torch.equal(parameter.grad, torch.full_like(parameter, mean).conj())


def test_accumulation_passes(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), backward_passes_per_step=3)
    for _ in range(3):
        optimizer.zero_grad()
        reference.zero_grad()
        for batch in batches(world, steps=3):
            square_loss(model, mine(world, batch)).backward()
            square_loss(reference, batch).backward()
        assert_same_gradients(model, reference)
        optimizer.step()
        with torch.no_grad():
            for parameter in reference.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    assert_same(model, reference)


@pytest.mark.parametrize("backwards", [1, 3, 5])
def test_other_numbers_of_passes_than_agreed(world: World, backwards: int) -> None:
    """With 2 passes per step: fewer are aggregated by step(), as in Horovod; more, at which Horovod stops, add up."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), backward_passes_per_step=1)
    optimizer.set_backward_passes_per_step(2)
    assert optimizer.backward_passes_per_step == 2
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(2):
        for batch in batches(world, steps=backwards):
            square_loss(model, mine(world, batch)).backward()
            square_loss(reference, batch).backward()
        optimizer.step()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    assert_same(model, reference)


@pytest.mark.parametrize("strategy", ["horovod", "auto"])
def test_buckets_leave_while_backward_runs(world: World, strategy: str) -> None:
    """In the order in which gradients become ready on rank 0, on all ranks, the first before the last is computed."""
    sent: list[int] = []

    class Watching(hvd.compression.Compressor):
        is_elementwise = True

        @staticmethod
        def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
            sent.append(tensor.numel())
            return tensor, None

        @staticmethod
        def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
            return tensor

    model = mlp()
    hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        compression=Watching,
        bucket_bytes=0,
        strategy=strategy,
        overlap=True,
    )
    sent_before_last: list[int] = []

    def note(_: torch.Tensor) -> None:
        time.sleep(0.1)  # hvdkit's own collectives run on another thread
        sent_before_last.append(len(sent))

    model[0].weight.register_hook(note)
    for batch in batches(world, steps=2):
        sent.clear()
        model.zero_grad()
        square_loss(model, mine(world, batch)).backward()
    ready = [3, 24, 8, 128, 16, 96]  # numbers of elements, from the last layer's to the first's
    if world.size > 1:
        assert sent_before_last == [0, 4] or sent_before_last == [0, 5]
        assert sorted(sent) == sorted(ready) and {*sent[:2]} == {3, 24} and {*sent[4:]} == {16, 96}
        assert hvd.allgather_object(sent) == [sent] * world.size


def test_no_sync_accumulates_locally(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    first, second = batches(world, steps=2)
    for _ in range(2):
        optimizer.zero_grad()
        reference.zero_grad()
        with optimizer.no_sync():
            square_loss(model, mine(world, first)).backward()
        local = twin(reference)
        square_loss(local, mine(world, first)).backward()
        assert_same_gradients(model, local)
        square_loss(model, mine(world, second)).backward()
        (square_loss(reference, first) + square_loss(reference, second)).backward()
        assert_same_gradients(model, reference)


def test_no_sync_around_everything_trains_alone(world: World) -> None:
    """As with DDP: `step()` within `no_sync()` uses the rank's own gradients; no rank waits for another."""
    model = mlp()
    local = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    plain = torch.optim.SGD(local.parameters(), lr=0.1)
    with optimizer.no_sync():
        for batch in batches(world, steps=1 + world.rank):
            for layers, stepper in ((model, optimizer), (local, plain)):

                def closure(layers: nn.Module = layers, stepper: Any = stepper, rows: Any = batch) -> torch.Tensor:
                    stepper.zero_grad()
                    loss = square_loss(layers, mine(world, rows))
                    loss.backward()
                    return loss

                closure()
                stepper.step()
                stepper.step(closure)
    assert_same(model, local, tolerance=0)
    assert optimizer.statistics.rounds == 0


def test_a_step_after_no_sync_alone_aggregates(world: World) -> None:
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step, batch in enumerate(batches(world, steps=4)):
        optimizer.zero_grad()
        plain.zero_grad()
        if step == 2:  # a synchronised backward before it, whose gradients stay
            square_loss(model, mine(world, batch)).backward()
            square_loss(reference, batch).backward()
        with optimizer.no_sync():
            square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
        optimizer.step()
        plain.step()
    assert_same(model, reference)


def test_a_second_backward_adds_its_average(world: World) -> None:
    """Horovod stops here with an error: two backward passes before one step."""
    model = mlp()
    reference = twin(model)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in batches(world, steps=2):
        square_loss(model, mine(world, batch)).backward()
        square_loss(reference, batch).backward()
    assert_same_gradients(model, reference)
    optimizer.zero_grad()  # Horovod stops here too, before step()
    optimizer.step()


def test_a_second_backward_is_refused_where_it_has_no_meaning(world: World) -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), op=hvd.Sum)
    first, second = batches(world, steps=2)
    square_loss(model, mine(world, first)).backward()
    if world.size > 1:
        with pytest.raises(hvd.HvdkitError, match="already aggregated"):
            square_loss(model, mine(world, second)).backward()
    optimizer.zero_grad()
    square_loss(model, mine(world, second)).backward()
    optimizer.step()
