"""What a run says of itself at its beginning and its end."""

import resource
from typing import TYPE_CHECKING

import torch

from hvdkit.models import count_parameters, generate
from hvdkit.runtime import World, gather_objects
from hvdkit.train.metrics import read_metrics
from hvdkit.train.picture import draw_losses
from hvdkit.train.report import duration, plural, size

if TYPE_CHECKING:
    from hvdkit.train.job import Job

_SCALING = {
    "weak": "more ranks make the global batch larger, the learning rate stays",
    "weak-linear-lr": "more ranks make the global batch larger and multiply the learning rate",
    "weak-sqrt-lr": "more ranks make the global batch larger and multiply the learning rate by their square root",
    "strong": "more ranks divide the same global batch, the learning rate stays",
}


def introduce(job: "Job") -> None:
    """Say what is about to run. Collective."""
    world, config = job.world, job.config
    hosts = len(set(gather_objects(world, world.hostname)))
    batch = config.global_batch(world.size)
    say = job.reporter.say
    say(f"hvdkit train: {job.model.name}, {count_parameters(job.model):,} parameters, {config.precision}")
    for line in job.corpus.describe():
        say(line)
    say(
        f"{plural(world.size, 'rank')} on {plural(hosts, 'host')}, Horovod over {world.backend}, "
        f"{world.device.type}, {plural(torch.get_num_threads(), 'thread')} per rank"
    )
    say(
        f"{batch} sequences of {config.context} = {batch * config.context:,} tokens a step, {config.steps} steps, "
        f"peak learning rate {config.peak_lr(world.size):.3g}"
    )
    say(f"--scaling {config.scaling}: {_SCALING[config.scaling]}")
    for line in job.aggregation.describe():
        say(line)
    if job.resumed:
        say(f"continued from {job.resumed.folder} at step {job.loop.step}")
    say(f"run folder: {job.folder}")


def summarise(job: "Job", seconds: float, lines: list[str]) -> None:
    """Say what came of it, after `seconds`, with the curves and a sample; `lines` are others' words. Collective."""
    timing = job.loop.timing
    peak = max(gather_objects(job.world, _peak_memory(job.world)))
    if not job.world.is_root:
        return
    say = job.reporter.say
    first = f" (first step after {duration(job.first_step_s)})" if job.first_step_s else ""
    say(f"\ndone: {job.loop.step} steps, {duration(seconds)}{first}")
    if timing.steps:
        say(
            f"  {timing.tokens / timing.seconds:,.0f} tokens/s, "
            f"{timing.seconds / timing.steps * 1e3:.0f} ms a step, "
            f"{timing.exposed_seconds / timing.seconds:.0%} of it exposed communication (rank 0), "
            f"{size(timing.bytes_sent / timing.steps)} sent per step and rank"
        )
    say(f"  peak memory {size(peak)} per rank; validation loss {job.validation_loss:.4f} {job.unit}")
    if job.loop.skipped:
        what = "steps" if job.config.local == "none" else "steps of single ranks"
        say(f"  {job.loop.skipped} {what} left out: their gradients were not finite")
    for line in lines:
        say(f"  {line}")
    picture = job.folder / "loss.png"
    if draw_losses(picture, f"{job.model.name}, {job.world.size} ranks", job.unit, read_metrics(job.folder)):
        say(f"  loss curves: {picture}")
    if job.model.objective == "causal" and job.config.sample_tokens:
        text = generate(job.model, job.corpus.tokenizer, job.config.sample_prompt, job.config.sample_tokens)
        say("\n".join(["  a sample:", *(f"    {line}" for line in text.splitlines())]))
    say(f"  go on with `hvdkit generate {job.folder}` or `--resume {job.folder}`")


def _peak_memory(world: World) -> int:
    """Bytes: of the GPU where there is one, else resident."""
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
