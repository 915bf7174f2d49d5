"""Planned and measured memory and time as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.step_picture import COLOURS, new_figure, save_figure

_WIDTH = 0.38


def draw_plans(records: Sequence[dict[str, Any]], title: str, path: Path) -> Path:
    """Memory of a rank, and time of a step: for each stage and number of ranks what was planned beside what was."""
    figure, (memory, time) = new_figure(2, width_in=5.6)
    watched = [record for record in records if record["peak_bytes"]]
    _bars(memory, watched, [record["planned_bytes"] / 1e6 for record in watched],
          [max(record["peak_bytes"]) / 1e6 for record in watched], "peak memory of a rank (MB)")  # fmt: skip
    _bars(time, records, [record["planned_s"] * 1e3 for record in records],
          [record["step_s"] * 1e3 for record in records], "ms a step")  # fmt: skip
    memory.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def _bars(
    axis: Any, records: Sequence[dict[str, Any]], planned: Sequence[float], measured: Sequence[float], unit: str
) -> None:
    places = range(len(records))
    for shift, values, colour, label in ((-1, planned, COLOURS[1], "planned"), (1, measured, COLOURS[0], "measured")):
        axis.bar([place + shift * _WIDTH / 2 for place in places], values, _WIDTH, color=colour, label=label)
    names = [f"{record['hosts'] if record['hosts'] > 1 else ''}{'x' if record['hosts'] > 1 else ''}"
             f"{record['ranks'] // record['hosts']}\n{record['stage']}" for record in records]  # fmt: skip
    axis.set_xticks(list(places), names, fontsize=7)
    axis.set_xlabel("ranks (hosts x ranks), and sharding stage below", fontsize=8)
    axis.set_ylabel(unit)
