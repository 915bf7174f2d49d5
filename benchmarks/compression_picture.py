"""The picture of `bench_compression.py`: training loss over steps, and how far validation is from no compression."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.step_picture import new_figure, save_figure

# Colour-blind safe (P. Tol's vibrant scheme). Lines that lie on one another are told apart by their dashes.
_STYLES = (
    ("#0077bb", "-", "o"),
    ("#33bbee", "--", "s"),
    ("#009988", "-.", "^"),
    ("#ee7733", "-", "v"),
    ("#cc3311", "-", "D"),
    ("#ee3377", "--", "P"),
    ("#aa4499", "-.", "X"),
)
_PLAIN: dict[str, Any] = {"color": "#222222", "linewidth": 3, "alpha": 0.55}
_BY_CHANCE: dict[str, Any] = {"color": "#999999", "linewidth": 1, "linestyle": ":"}


def draw(title: str, records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture to `path` (PNG); needs matplotlib."""
    figure, (curves, differences) = new_figure(2, height_in=4.6, width_in=6.2)
    styles = _styles(records)
    for item, style in zip(records, styles, strict=True):
        plain = {key: value for key, value in style.items() if key != "marker"}
        curves.plot(*_points(item["loss"]), label=item["name"], **plain)
        differences.plot(*_points(item["difference_percent"]), label=item["name"], markersize=4, **style)
    curves.set(xlabel="step", ylabel="training loss, nats/byte", title="training loss")
    differences.set(xlabel="step", ylabel="difference from none, %")
    differences.set_title("validation loss (last point: on all held-out text)")
    for axis in (curves, differences):
        axis.set_xlim(0, None)
        axis.grid(alpha=0.3)
    curves.legend(fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _points(by_step: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(by_step), list(by_step.values())


def _styles(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each run: the first is what all are compared with, other seeds of it are faint."""
    names = [record["name"] for record in records if record["compression"] != "none"]
    styles = [_PLAIN]
    for record in records[1:]:
        if record["name"] in names:
            colour, dashes, mark = _STYLES[names.index(record["name"]) % len(_STYLES)]
            styles.append({"color": colour, "linewidth": 1.5, "linestyle": dashes, "marker": mark})
        else:
            styles.append(_BY_CHANCE)
    return styles
