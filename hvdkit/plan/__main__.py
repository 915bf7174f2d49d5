"""`python -m hvdkit.plan`, also `hvdkit plan`: what a run needs, alone or on the ranks that a launcher started.

Alone it starts a short job of its own, with as many ranks as a host has, to measure this machine. Started by a
launcher it measures the ranks that it has, their network too.
"""

import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hvdkit.collectives import why_no_direct
from hvdkit.data import ByteTokenizer, load_tokenizer
from hvdkit.errors import ConfigError, HvdkitError
from hvdkit.launch.job import end_when_told, run_python
from hvdkit.plan.command import command_lines, train_options
from hvdkit.plan.footprint import Footprint
from hvdkit.plan.machine import Machine
from hvdkit.plan.measure import QUICK, measure, planned_footprint
from hvdkit.plan.network import Network, Ranks
from hvdkit.plan.options import PlanOptions, parse
from hvdkit.plan.picture import draw_scaling
from hvdkit.plan.plan import Plan, make_plan
from hvdkit.plan.report import as_text
from hvdkit.runtime import die, end_job_on_error, init, launch_info
from hvdkit.runtime.world import usable_cores
from hvdkit.train.config import TrainConfig
from hvdkit.train.report import plural

_MOST_MEASURING = 16
_MEASURE_LIMIT_S = 300


def main(argv: list[str] | None = None) -> int:
    """Plan; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    end_when_told()
    try:
        options, config = parse(words)
        question = _ask(options, config)
        if launch_info().is_launched:
            with end_job_on_error():
                world = init()
                if world.size > 1 and (why := why_no_direct(world)):
                    raise ConfigError(f"{why}, so its collectives cannot be measured; start it by mpirun, or alone")
                count = options.ranks or world.size
                footprint = planned_footprint(config, count, question.vocab_size)
                machine = measure(world, config, count, question.vocab_size)
                if not world.is_root:
                    return 0
        else:
            count = options.ranks or options.ranks_per_host or len(usable_cores())
            footprint = planned_footprint(config, count, question.vocab_size)
            machine = _measure_here(question, count)
        print(_answer(question, footprint, machine, count))
    except HvdkitError as error:
        die(str(error), status=2)
    except KeyboardInterrupt:
        return 130
    return 0


@dataclass(frozen=True)
class _Question:
    options: PlanOptions
    config: TrainConfig
    vocab_size: int

    @property
    def is_elsewhere(self) -> bool:
        """Whether the ranks are on other machines than this, which have a core for each rank, one supposes."""
        options = self.options
        return bool(options.ranks_per_host or options.link or options.flops)


def _ask(options: PlanOptions, config: TrainConfig) -> _Question:
    """Checks what can be checked before anything is measured."""
    if options.picture is not None:
        _check_picture(Path(options.picture))
    several = options.ranks_per_host and options.ranks > options.ranks_per_host
    if several and options.link is None and not launch_info().is_launched:
        raise ConfigError(
            f"{options.ranks // options.ranks_per_host} hosts: tell what joins them, as --link 25gbit, or start "
            "`hvdkit plan` on them by a launcher"
        )
    return _Question(options, config, _vocab_size(config))


def _check_picture(path: Path) -> None:
    if path.suffix != ".png" or path.is_dir():
        raise ConfigError(f"--picture {path} must be the name of a file that ends in .png")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"--picture {path}: its folder is not there, or cannot be written to")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--picture needs matplotlib (`pip install 'hvdkit[plot]'`)")


def _answer(question: _Question, footprint: Footprint, machine: Machine, count: int) -> str:
    """The plan as text, or as JSON."""
    options, config = question.options, question.config
    ranks = _place(options, machine, count)
    if options.flops_per_s is not None:
        machine = machine.with_flops(options.flops_per_s)
    network = Network(machine, options.link_bytes_per_s, options.inside_bytes_per_s)
    if ranks.hosts > 1 and network.wire_bytes_per_s is None:
        raise ConfigError(f"{ranks.hosts} hosts: tell what joins them, as --link 25gbit")
    batch = config.global_batch(count)
    plan = make_plan(
        footprint,
        network,
        ranks,
        tokens_per_step=batch * config.context,
        accumulate=_passes(config, count),
        memory_per_rank=options.memory_bytes,
        per_host=options.ranks_per_host or None,
    )
    title = (
        f"hvdkit plan: {footprint.name}, {footprint.parameters:,} parameters, {config.precision}, AdamW; "
        f"{plural(count, 'rank')} on {plural(ranks.hosts, 'host')}; {batch} sequences of {config.context} = "
        f"{batch * config.context:,} tokens a step"
    )
    if options.picture is not None:
        draw_scaling(Path(options.picture), plan, title)
    command = _command(question, plan)
    if options.json:
        return json.dumps({**plan.to_json(), "command": command})
    text = as_text(plan, title, command)
    return text + (f"\n\npicture: {options.picture}" if options.picture else "")


def _passes(config: TrainConfig, count: int) -> int:
    """Forward and backward passes of a step, of the rank with most to do."""
    rows = -(-config.global_batch(count) // count)
    return max(1, -(-rows // config.micro_batch(count)))


def _command(question: _Question, plan: Plan) -> list[str]:
    if plan.best is None:
        return []
    return command_lines(
        question.config,
        plan.best.stage,
        plan.ranks,
        plan.ranks.per_host if question.is_elsewhere else plan.machine.cores,
        has_gpus=question.options.inside is not None,
        link=question.options.link_bytes_per_s,
    )


def _place(options: PlanOptions, machine: Machine, count: int) -> Ranks:
    """Where `count` ranks are."""
    if options.ranks_per_host:
        per_host = options.ranks_per_host
    elif count == machine.hosts * machine.ranks_per_host:
        per_host = machine.ranks_per_host
    else:
        per_host = count if machine.hosts == 1 else machine.ranks_per_host
    per_host = min(per_host, count)
    if count % per_host:
        raise ConfigError(f"{count} ranks do not fill hosts of {per_host}; give another --ranks or --ranks-per-host")
    return Ranks(count // per_host, per_host)


def _measure_here(question: _Question, ranks: int) -> Machine:
    """Measure with as many ranks as a host of the plan has, in a job of their own."""
    options, config = question.options, question.config
    together = min(options.ranks_per_host or ranks, ranks, _MOST_MEASURING)
    if question.is_elsewhere:
        together = min(together, len(usable_cores()))
    with tempfile.TemporaryDirectory(prefix="hvdkit-plan-") as folder:
        file = Path(folder, "machine.json")
        words = ("-m", "hvdkit.plan.measure", str(file), str(ranks), str(question.vocab_size))
        config = replace(config, model=QUICK) if options.flops is not None else config
        run_python(together, [*words, *train_options(config, config.sharding)], _MEASURE_LIMIT_S)
        if not file.exists():
            raise HvdkitError("measuring this machine gave no result")
        return Machine.from_json(json.loads(file.read_text(encoding="utf-8")))


def _vocab_size(config: TrainConfig) -> int:
    """Token ids of the tokenizer that the run would have."""
    if config.tokenizer == "bytes":
        return ByteTokenizer().vocab_size
    return config.vocab_size if config.tokenizer == "bpe" else load_tokenizer(Path(config.tokenizer)).vocab_size


if __name__ == "__main__":
    sys.exit(main())
