"""Measures a `Machine` on all ranks at once: some training steps without communication, and the collectives' probe.

    hvdkit run -np 2 -- python -m hvdkit.plan.measure FILE RANKS VOCABULARY [the options of hvdkit train]

writes it to FILE as JSON, for a run on RANKS ranks with VOCABULARY token ids. The model that is trained is the one
that is planned, where its steps are short and its state has room here, and a smaller one otherwise.
"""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from hvdkit.collectives import direct_collectives, why_no_direct
from hvdkit.collectives.probe import probe
from hvdkit.errors import HvdkitError
from hvdkit.models import LanguageModel, build_model
from hvdkit.plan.footprint import Footprint, fake_batch, measure_footprint
from hvdkit.plan.machine import Machine
from hvdkit.runtime import World, die, end_job_on_error, gather_objects, init, share_object
from hvdkit.runtime.world import usable_cores
from hvdkit.train.building import make_optimizer
from hvdkit.train.config import TrainConfig, parse
from hvdkit.train.loss import mean_loss
from hvdkit.train.room import memory_limit

_MOST_FLOPS = 4e11
"""Of a pass: about a second on a core or two."""
QUICK = "gpt-mini"
_SMALLER = ("gpt-33m", "gpt-4m", QUICK)
_SMALLER_CONTEXT = 256
_STEPS_S = 3.0
_PROBE_S = 2.0
"""More than a training run takes for it, so that long messages are probed on slow networks too."""
_COPY_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Trial:
    """A model and a batch to train on for a few steps."""

    footprint: Footprint
    build: Callable[[], LanguageModel]
    batch_size: int
    context: int


def measure(world: World, config: TrainConfig, ranks: int, vocab_size: int) -> Machine:
    """Measure the ranks of this job, all at once, for a run of `config` on `ranks`. Collective; takes some seconds."""
    torch.set_num_threads(config.threads or world.threads)
    parameters = None
    if world.size > 1 and why_no_direct(world) is None:
        direct = direct_collectives(world)
        parameters = probe(direct.group, direct.algorithms, direct.meeting, budget_s=_PROBE_S)
    trial = _choose_trial(world, config, ranks, vocab_size)
    pass_s, optimizer_s = _train(world, trial, config)
    _trim()
    process_bytes = max(gather_objects(world, _read_pss()))
    copy_s = _time_copy(world)
    return Machine(
        hosts=max(gather_objects(world, world.cross_size)),
        ranks_per_host=world.local_size,
        threads=torch.get_num_threads(),
        cores=len(usable_cores()),
        has_free_core=world.threads > torch.get_num_threads(),
        flops_per_s=trial.footprint.flops / pass_s,
        source=f"{trial.footprint.name} with {trial.batch_size} x {trial.context} tokens",
        optimizer_s=optimizer_s / max(1, trial.footprint.trained),
        copy_s=copy_s,
        process_bytes=process_bytes,
        memory=memory_limit(),
        collectives=parameters,
    )


def planned_footprint(config: TrainConfig, ranks: int, vocab_size: int) -> Footprint:
    """Of the run that `config` describes."""
    return _footprint_of(config.model, vocab_size, config.micro_batch(ranks), config.context, config.precision)


def _footprint_of(model: str, vocab_size: int, batch_size: int, context: int, precision: str) -> Footprint:
    return measure_footprint(
        _builder(model, vocab_size, context, precision),
        batch_size,
        context,
        precision == "bf16",
        reads_files=Path(model).is_dir(),
    )


def _builder(model: str, vocab_size: int, context: int, precision: str) -> Callable[[], LanguageModel]:
    def build() -> LanguageModel:
        default = torch.get_default_dtype()
        dtype = torch.float64 if precision == "float64" else torch.float32
        torch.set_default_dtype(dtype)
        try:
            return build_model(model, vocab_size, context).to(dtype)
        finally:
            torch.set_default_dtype(default)

    return build


def _choose_trial(world: World, config: TrainConfig, ranks: int, vocab_size: int) -> Trial:
    """The planned run where it is small enough, else the largest of `_SMALLER` that is. The same on all ranks."""
    room = min(gather_objects(world, min(memory_limit(), psutil.virtual_memory().available))) / world.local_size / 2
    planned = [(config.model, config.context, batch) for batch in dict.fromkeys((config.micro_batch(ranks), 1))]
    footprint: Any = None
    smaller = [(name, min(_SMALLER_CONTEXT, config.context), 1) for name in _SMALLER]
    for model, context, batch_size in (*planned, *smaller):
        if world.is_root:
            footprint = _footprint_of(model, vocab_size, batch_size, context, config.precision)
        footprint = share_object(world, footprint)
        state = 4 * footprint.parameters * footprint.itemsize
        if footprint.flops <= _MOST_FLOPS and state + footprint.activations <= room:
            return Trial(footprint, _builder(model, vocab_size, context, config.precision), batch_size, context)
    raise HvdkitError(f"{room / 1e6:.0f} MB of memory are too little for measuring a training step of a small model")


def _train(world: World, trial: Trial, config: TrainConfig) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and of clipping and stepping, on the slowest rank."""
    torch.manual_seed(world.rank)
    model = trial.build()
    optimizer = make_optimizer(model, config)
    batch = fake_batch(trial.batch_size, trial.context)
    batch = replace(batch, inputs=torch.randint(model.vocab_size, batch.inputs.shape))
    autocast = config.precision == "bf16"

    def step() -> tuple[float, float]:
        optimizer.zero_grad()
        gather_objects(world, None)  # together, as in training
        begun = time.perf_counter()
        mean_loss(model, batch, autocast).backward()
        passed = time.perf_counter()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        return passed - begun, time.perf_counter() - passed

    step()
    slowest_s = max(gather_objects(world, sum(step())))
    steps = [step() for _ in range(max(3, min(12, int(_STEPS_S / slowest_s))))]
    everyones = gather_objects(world, steps)
    return tuple(  # type: ignore[return-value]
        statistics.median(max(rank[number][part] for rank in everyones) for number in range(len(steps)))
        for part in (0, 1)
    )


def _time_copy(world: World) -> float:
    source, target = torch.zeros(_COPY_BYTES, dtype=torch.uint8), torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    times = []
    for _ in range(5):
        gather_objects(world, None)
        begun = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begun)
    return max(gather_objects(world, statistics.median(times))) / _COPY_BYTES


def _trim() -> None:
    """Give memory that is free back to the kernel, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _read_pss() -> int:
    """Bytes; what ranks share counts in parts."""
    info = psutil.Process().memory_full_info()
    return int(getattr(info, "pss", info.uss))


def main(argv: list[str]) -> int:
    """Be a rank of the job that measures."""
    path, ranks, vocab_size, *words = argv
    with end_job_on_error():
        world = init()
        try:
            machine = measure(world, parse(words), int(ranks), int(vocab_size))
        except HvdkitError as error:
            die(str(error), status=2)
        if world.is_root:
            Path(path).write_text(json.dumps(machine.to_json()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
