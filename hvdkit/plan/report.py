"""The plan in words and tables."""

from collections.abc import Sequence

from hvdkit.plan.command import ETHERNET_BYTES_PER_S
from hvdkit.plan.machine import FLOPS_PER_BYTE, GIVEN
from hvdkit.plan.network import ASSUMED_LATENCY_S
from hvdkit.plan.plan import ASSUMED_LINK, Plan, StagePlan
from hvdkit.train.report import plural, size

_WHAT = {0: "nothing cut", 1: "optimizer state", 2: "and gradients", 3: "and parameters"}


def as_text(plan: Plan, title: str, command: Sequence[str]) -> str:
    """All of it; `title` says what is trained, `command` how to start it."""
    parts = [
        title,
        _memory_table(plan),
        _time_table(plan),
        _strategy_table(plan),
        _scaling_table(plan),
        _advice(plan, command),
        _assumptions(plan),
    ]
    return "\n\n".join(part for part in parts if part)


def _memory_table(plan: Plan) -> str:
    header = ["stage", "cut", "parameters", "gradients", "optimizer", "activations", "buffers", "process", "peak",
              "saving", "fits"]  # fmt: skip
    rows = []
    for item in plan.stages:
        memory, state = item.memory, item.memory.state
        numbers = (state.parameters, state.gradients, state.optimizer, memory.activations, memory.buffers,
                   memory.process, memory.peak, memory.saving)  # fmt: skip
        rows.append([str(item.stage), _what(item), *map(size, numbers), "yes" if item.fits else "no"])
    there = (
        f"{size(plan.memory_per_rank)} for each rank"
        if plan.memory_per_rank is not None
        else f"{size(plan.machine.memory)} for the {plural(plan.ranks.per_host, 'rank')} of a host"
    )
    return "\n".join([f"Memory of a rank ({there}):", *table(header, rows)])


def _time_table(plan: Plan) -> str:
    header = ["stage", "cut", "compute", "optimizer", "communication", "exposed", "step", "tokens/s", "sent by a rank",
              "sent by a host"]  # fmt: skip
    rows = []
    for item in plan.stages:
        time = item.time
        seconds = (time.compute, time.optimizer, time.communication, time.exposed, time.step)
        rows.append([
            str(item.stage), _what(item), *map(milliseconds, seconds), f"{plan.tokens_per_step / time.step:,.0f}",
            size(item.bytes_sent), size(item.bytes_out) if plan.ranks.hosts > 1 else "-",
        ])  # fmt: skip
    return "\n".join(["Time of a step, in ms, and bytes on the wire in a step:", *table(header, rows)])


def _strategy_table(plan: Plan) -> str:
    names = list(dict.fromkeys(name for item in plan.stages for name in item.by_strategy))
    if plan.ranks.size == 1 or not names:
        return ""
    rows = [
        [str(item.stage), *(milliseconds(item.by_strategy[n]) if n in item.by_strategy else "-" for n in names)]
        for item in plan.stages
    ]
    return "\n".join(["Communication in a step by --strategy, in ms:", *table(["stage", *names], rows)])


def _scaling_table(plan: Plan) -> str:
    header = ["ranks", "hosts", *(f"stage {item.stage}" for item in plan.stages)]
    rows = [
        [str(point.ranks.size), str(point.ranks.hosts), *(f"{share:.0%}" for share in point.efficiency.values())]
        for point in plan.scaling
    ]
    lines = ["Scaling efficiency, each rank with the same batch (of a rank that computes as fast, alone):"]
    lines += table(header, rows)
    if any(share > 1.005 for point in plan.scaling for share in point.efficiency.values()):
        lines.append("  (over 100%: the optimizer's step is cut)")
    machine = plan.machine
    if machine.source != GIVEN and machine.ranks_per_host * machine.threads > machine.cores:
        cores = plural(machine.cores, "core")
        lines.append(f"  ({plural(machine.ranks_per_host, 'rank')} shared {cores} when measured: one alone is faster)")
    return "\n".join(lines)


def _advice(plan: Plan, command: Sequence[str]) -> str:
    best = plan.best
    if best is None:
        least = min(plan.stages, key=lambda item: item.memory.peak)
        return (
            f"No stage fits. Stage {least.stage} needs least, {size(least.memory.peak)} for a rank: take more ranks "
            "(stage 3), a smaller --batch-size with --accumulate, or a smaller model."
        )
    return "\n".join([f"The quickest that fits is stage {best.stage}:", "", *(f"  {line}" for line in command)])


def _assumptions(plan: Plan) -> str:
    machine = plan.machine
    together = f"{plural(machine.ranks_per_host, 'rank')} at once, {plural(machine.threads, 'thread')} each"
    lines = [f"computing: {machine.flops_per_s / 1e9:,.0f} GFLOP/s per rank, {machine.source}"]
    how = f"a byte of memory in {FLOPS_PER_BYTE} operations, 28 bytes"
    if machine.source != GIVEN:
        lines[0] += f", {together}"
        how = f"measured, {together}"
    lines.append(f"AdamW and clipping: {machine.optimizer_s * 1e9:.3g} ns per parameter, {how}")
    if machine.collectives is None or machine.collectives.wire_latency_s is None:
        lines.append(f"a message between hosts: {ASSUMED_LATENCY_S * 1e6:.0f} us and its bytes over the link")
    if plan.is_link_assumed:
        lines.append(f"hosts, if there were more: joined by {ASSUMED_LINK * 8 / 1e9:.0f} Gbit/s (--link says another)")
    if plan.ranks.hosts > 1:
        lines.append(f"a link above {ETHERNET_BYTES_PER_S * 8 / 1e9:.0f} Gbit/s is InfiniBand or RoCE")
    lines += [
        "communication runs beside the backward pass where a core is free; otherwise a third of it hides the wire",
        "stage 1 communicates after it; shared weights (stages 1 and 2 on one host) need no all-gather",
        "more ranks on a host than were measured move more bytes at the same speed",
        "peak: the sum, for what a step frees stays with the process",
        "saving: rank 0 assembles what is cut, while the others of its host hold their state alone",
        "ranks keep pace with each other, and reading data takes no time",
    ]
    return "\n".join(["Assumed:", *(f"  {line}" for line in lines)])


def _what(item: StagePlan) -> str:
    return _WHAT[item.stage] + (", weights shared" if item.shared_weights else "")


def milliseconds(seconds: float) -> str:
    """Three digits at least."""
    return f"{seconds * 1e3:,.1f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: words to the left, everything else to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  " + "  ".join(
            cell.ljust(width) if name == "cut" else cell.rjust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]  # fmt: skip
