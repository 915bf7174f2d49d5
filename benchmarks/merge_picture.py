"""Times and memory of merges as a picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.step_picture import COLOURS, new_figure, save_figure

_ARMS = ("hvdkit", "mergekit", "copy")
_WIDTH = 0.27


def draw_merges(records: Sequence[dict[str, Any]], title: str, path: Path) -> Path:
    """Seconds and peak memory of each rule and program, on logarithmic axes."""
    figure, axes = new_figure(2, width_in=5.6)
    rules = list(dict.fromkeys(record["rule"] for record in records))
    for axis, key, unit, scale in zip(axes, ("s", "bytes"), ("seconds", "peak memory of a process (MB)"), (1, 1e-6),
                                      strict=True):  # fmt: skip
        for number, arm in enumerate(_ARMS):
            known = [
                (place, [record[f"{arm}_{key}"] * scale for record in records if record["rule"] == rule])
                for place, rule in enumerate(rules)
                if all(f"{arm}_{key}" in record for record in records)
            ]
            places = [place + (number - 1) * _WIDTH for place, _ in known]
            axis.bar(places, [median(values) for _, values in known], _WIDTH, color=COLOURS[number], label=arm)
        axis.set_yscale("log")
        axis.set_xticks(range(len(rules)), [rule.replace("_", "\n") for rule in rules], fontsize=7)
        axis.set_ylabel(unit)
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)
