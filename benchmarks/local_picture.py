"""Validation loss over bytes on one machine, and over seconds between two hosts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.step_picture import COLOURS, new_figure, save_figure


def draw_local(here: Sequence[dict[str, Any]], apart: Sequence[dict[str, Any]], path: Path) -> Path:
    """One panel for each of the two that was measured."""
    panels = [(records, by) for records, by in ((here, "step"), (apart, "seconds of training")) if records]
    figure, axes = new_figure(len(panels), width_in=5.6)
    for axis, (records, by) in zip(axes, panels, strict=True):
        for number, record in enumerate(records):
            on_way = record["losses"][1:-1]  # the last one is on other text
            places = [point[0 if by == "step" else 1] for point in on_way]
            losses = [point[2] for point in on_way]
            axis.plot(places, losses, ".-", color=COLOURS[number % len(COLOURS)], label=record["arm"])
        axis.set_xlabel(by)
        axis.set_ylabel("validation loss (nats/byte)")
        axis.legend(fontsize=7)
    return save_figure(figure, path)
