"""One training step by each library: the same GPT, batches and optimizer, aggregated by different means.

An arm's ranks are all started the same way. They compute on random tokens, other ones on each rank, the same in every
arm, so that the arms that aggregate must arrive at the same loss. The arm `local` starts no library at all: its ranks
only wait for each other's files before the first timed step, and keep the machine busy until the last is done.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hvdkit.models.config import ModelConfig
from hvdkit.models.gpt import GPT
from hvdkit.models.presets import PRESETS
from hvdkit.runtime.launcher import launch_info


class Size(NamedTuple):
    """A model and the sequences per rank that it is trained on."""

    config: ModelConfig
    batch_size: int


_CONTEXT = 128
SIZES = {
    "toy": Size(replace(PRESETS["gpt-toy"], context=_CONTEXT), 2),
    "4m": Size(replace(PRESETS["gpt-4m"], context=_CONTEXT), 2),
    "33m": Size(replace(PRESETS["gpt-33m"], context=_CONTEXT), 1),
    "132m": Size(replace(PRESETS["gpt-33m"], layers=12, width=960, heads=15, feed_forward=3840, context=_CONTEXT), 1),
}
"""4 048 384, 32 134 464 and 133 233 600 parameters; sequences of 128 bytes. `toy` is for the tests."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
}


@dataclass(frozen=True)
class StepOptions:
    """What is the same in all arms that are compared."""

    model: str
    optimizer: str
    threads: int
    steps: int
    warmup: int = 3
    batch_size: int = 0
    """Sequences per rank; 0 for the model's own of `SIZES`."""

    def words(self) -> list[str]:
        """As words of a command line, which `from_words` reads."""
        return [str(value) for value in asdict(self).values()]

    @classmethod
    def from_words(cls, words: list[str]) -> "StepOptions":
        """The options that `words()` wrote."""
        model, optimizer, *numbers = words
        return cls(model, optimizer, *(int(number) for number in numbers))


Connected = tuple[Callable[[torch.Tensor], torch.Tensor], torch.optim.Optimizer, Callable[[], None]]
"""The model as it is called, the optimizer as it is stepped, and what ends the library."""


def _local(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Connected:
    return model, optimizer, lambda: None


def _stock(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, **options: Any) -> Connected:
    import horovod.torch as horovod

    horovod.init()
    horovod.broadcast_parameters(model.state_dict(), root_rank=0)
    wrapped = horovod.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), **options)
    return model, wrapped, horovod.shutdown


def _ddp(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Connected:
    from torch.nn.parallel import DistributedDataParallel

    start_gloo(folder)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    return parallel, optimizer, torch.distributed.destroy_process_group


def _hvdkit(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, **options: Any) -> Connected:
    import hvdkit as hvd

    hvd.init()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    wrapped = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), **options)
    return model, wrapped, hvd.shutdown


def _sharded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, **options: Any) -> Connected:
    import hvdkit as hvd

    hvd.init()
    sharded, stepped = hvd.shard(model, optimizer, **options)
    return sharded, stepped, hvd.shutdown


def _ddp_zero(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Connected:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    parallel, _, close = _ddp(model, optimizer, folder)
    kind, options = _remade(optimizer)
    return parallel, ZeroRedundancyOptimizer(model.parameters(), kind, **options), close


def _fsdp2(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Connected:
    from torch.distributed.fsdp import fully_shard

    start_gloo(folder)
    mesh = torch.distributed.init_device_mesh("cpu", (launch_info().size,))
    for layer in model.get_submodule("layers").children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    kind, options = _remade(optimizer)
    return model, kind(model.parameters(), **options), torch.distributed.destroy_process_group


def _remade(optimizer: torch.optim.Optimizer) -> tuple[Any, dict[str, Any]]:
    """The class and the options that make such an optimizer."""
    names = ("lr", "momentum", "betas", "eps", "weight_decay", "fused")
    return type(optimizer), {name: optimizer.defaults[name] for name in names if name in optimizer.defaults}


class Arm(NamedTuple):
    """A way to train: its name in tables, and what puts model and optimizer into its hands."""

    label: str
    connect: Callable[..., Connected]
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    is_exact: bool = True
    """Whether its gradients are the mean over ranks, to rounding."""


ARMS = {
    "local": Arm("local only", _local, is_exact=False),
    "stock": Arm("stock Horovod", _stock),
    "stock-groups": Arm("stock Horovod, groups=8", _stock, {"groups": 8}),
    "ddp": Arm("DDP, Gloo", _ddp),
    "hvdkit": Arm("hvdkit", _hvdkit, {"strategy": "auto"}),
    "hvdkit-powersgd": Arm("hvdkit, powersgd", _hvdkit, {"strategy": "auto", "compression": "powersgd"}, False),
    "hvdkit-int8": Arm("hvdkit, int8", _hvdkit, {"strategy": "auto", "compression": "int8"}, False),
    "ddp-zero": Arm("DDP, ZeroRedundancyOptimizer", _ddp_zero),
    "fsdp2": Arm("FSDP2", _fsdp2),
    "shard1": Arm("hvdkit stage 1", _sharded, {"stage": 1}),
    "shard1-shared": Arm("hvdkit stage 1, shared weights", _sharded, {"stage": 1, "shared_weights": True}),
    "shard2": Arm("hvdkit stage 2", _sharded, {"stage": 2}),
    "shard3": Arm("hvdkit stage 3", _sharded, {"stage": 3}),
}


def start_gloo(folder: Path) -> None:
    """torch.distributed over Gloo, for ranks that any launcher started; they meet in a file of the shared `folder`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = launch_info()
    meeting = f"file://{folder}/gloo"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=place.rank, world_size=place.size)


@dataclass(frozen=True)
class Training:
    """A model in the hands of an arm."""

    model: nn.Module
    step: Callable[[], float]
    """Does one training step and returns its loss."""
    close: Callable[[], None]
    tokens_per_step: int
    """On this rank."""


def start_training(arm: str, options: StepOptions, folder: Path) -> Training:
    """Build the model and have `arm` connect it. The job's ranks share `folder`."""
    torch.set_num_threads(options.threads)
    size = SIZES[options.model]
    torch.manual_seed(1)
    model = GPT(size.config)
    plain = OPTIMIZERS[options.optimizer](model.parameters())
    forward, optimizer, close = ARMS[arm].connect(model, plain, folder, **ARMS[arm].options)
    shape = (options.batch_size or size.batch_size, size.config.context + 1)
    random = torch.Generator().manual_seed(1000 + launch_info().rank)
    tokens = torch.randint(size.config.vocab_size, shape, generator=random)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(inputs).flatten(0, 1), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Training(model, step, close, targets.numel())


def measure_steps(
    arm: str, options: StepOptions, folder: Path, before_close: Callable[[nn.Module], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Train on this rank; returns its step times (s), and what `before_close` returns. The ranks share `folder`."""
    training = start_training(arm, options, folder)
    for _ in range(options.warmup):
        training.step()
    if arm == "local":
        meet(folder, "start")
    step_s = []
    for _ in range(options.steps):
        start = time.perf_counter()
        training.step()
        step_s.append(time.perf_counter() - start)
    if arm == "local":
        say(folder, "end")
        while not all_said(folder, "end"):
            training.step()
    more = before_close(training.model) if before_close is not None else {}
    training.close()
    return {**more, "step_s": step_s, "tokens_per_step": training.tokens_per_step}


def read_pss_bytes() -> int:
    """The proportional set size of this process."""
    return _kilobytes(Path("/proc/self/smaps_rollup"), "Pss:")


def read_resident_peak_bytes() -> int:
    """The most resident memory that this process ever had."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM:")


def _kilobytes(path: Path, field: str) -> int:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def say(folder: Path, word: str) -> None:
    """Let the other ranks know that this one has got so far."""
    (folder / f"{word}.{launch_info().rank}").touch()


def all_said(folder: Path, word: str) -> bool:
    """Whether all ranks have said `word`."""
    return all((folder / f"{word}.{rank}").exists() for rank in range(launch_info().size))


def meet(folder: Path, word: str) -> None:
    """Wait until all ranks are here, without any library."""
    say(folder, word)
    while not all_said(folder, word):
        time.sleep(0.001)
