"""Pictures of the benchmarks that start jobs: bars for what was measured, one panel for each situation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.step_arms import ARMS

COLOURS = ("#4c566a", "#bf616a", "#d08770", "#b48ead", "#5e81ac", "#88c0d0", "#a3be8c", "#ebcb8b")


def new_figure(panels: int, height_in: float = 4.0, width_in: float = 4.4) -> tuple[Any, list[Any]]:
    """A figure with `panels` axes, at most four in a row; needs matplotlib (`pip install 'hvdkit[plot]'`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = max(1, min(panels, 4))
    rows = max(1, -(-panels // columns))
    figure, grid = pyplot.subplots(rows, columns, figsize=(columns * width_in, rows * height_in), squeeze=False)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:panels]


def save_figure(figure: Any, path: Path) -> Path:
    """Write `figure` to `path` (PNG), making its folder; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


def draw_bars(axis: Any, names: Sequence[str], values: Sequence[float], colours: Sequence[str], unit: str) -> None:
    """Horizontal bars from the top down, each with its value at its end."""
    places = range(len(names))
    axis.barh(places, values, color=colours)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.set_xlim(0, 1.18 * max(values, default=1))
    for place, value in zip(places, values, strict=True):
        axis.text(value, place, f" {value:.0f}" if value >= 100 else f" {value:.3g}", va="center", fontsize=8)


def draw_steps(comparisons: Sequence[Sequence[dict[str, Any]]], path: Path) -> Path:
    """One panel for each model, optimizer and number of ranks: the arms' step times, and local only as a line."""
    figure, axes = new_figure(len(comparisons))
    for axis, records in zip(axes, comparisons, strict=True):
        first = records[0]
        colours = [COLOURS[list(ARMS).index(record["arm"]) % len(COLOURS)] for record in records]
        names = [ARMS[record["arm"]].label for record in records]
        draw_bars(axis, names, [record["mean_s"] * 1e3 for record in records], colours, "ms a step (mean)")
        for record in records:
            if record["arm"] == "local":
                axis.axvline(record["mean_s"] * 1e3, color=COLOURS[0], linestyle=":", linewidth=1)
        axis.set_title(f"{first['parameters'] / 1e6:.0f}M, {first['optimizer']}, {first['ranks']} ranks", fontsize=10)
    return save_figure(figure, path)


def draw_hosts(
    reduces: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], label: Callable[[str], str], path: Path
) -> Path:
    """For each link how many times the wire's bound an all-reduce takes, by size; then the training steps' times."""
    links = sorted({record["megabits_per_s"] for record in reduces}, reverse=True)
    figure, axes = new_figure(len(links) + bool(steps), width_in=5.2)
    names = list(dict.fromkeys(record["algorithm"] for record in reduces))
    for axis, link in zip(axes, links, strict=False):
        for name in names:
            mine = [record for record in reduces if (record["algorithm"], record["megabits_per_s"]) == (name, link)]
            ratios = [record["median_s"] / record["bound_s"] for record in mine]
            style = {"linestyle": "--"} if "hvdkit" not in name else {}
            axis.plot([record["bytes"] / 2**20 for record in mine], ratios, marker="o", label=label(name), **style)
        axis.axhline(1, color="black", linewidth=1, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("message, MiB")
        axis.set_ylabel("time / wire bound")
        axis.set_title(f"all-reduce, {link} Mbit/s", fontsize=10)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.6)  # room for the legend
        axis.legend(fontsize=7, ncols=2, loc="upper right")
    if steps:
        colours = [COLOURS[list(ARMS).index(record["arm"]) % len(COLOURS)] for record in steps]
        labels = [ARMS[record["arm"]].label for record in steps]
        draw_bars(axes[-1], labels, [record["mean_s"] * 1e3 for record in steps], colours, "ms a step (mean)")
        axes[-1].set_title(f"training {steps[0]['model']}, {steps[0]['megabits_per_s']} Mbit/s", fontsize=10)
    return save_figure(figure, path)


def draw_stragglers(records: Sequence[dict[str, Any]], factor: float, path: Path) -> Path:
    """One panel for each number of ranks and size: the arms' rounds in each situation."""
    panels = list(dict.fromkeys((record["ranks"], record["bytes"]) for record in records))
    figure, axes = new_figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        mine = [record for record in records if (record["ranks"], record["bytes"]) == panel]
        arms = list(dict.fromkeys(record["arm"] for record in mine))
        situations = list(dict.fromkeys(record["situation"] for record in mine))
        for number, situation in enumerate(situations):
            times = [record["median_s"] * 1e3 for record in mine if record["situation"] == situation]
            places = [place + 0.27 * (number - 1) for place in range(len(arms))]
            axis.barh(places, times, height=0.25, label=situation, color=COLOURS[number])
        axis.set_yticks(range(len(arms)), arms)
        axis.invert_yaxis()
        axis.set_xlabel(f"ms a round (slow: {factor:g} times the work)")
        axis.set_title(f"{panel[0]} ranks, {panel[1] / 1024:.0f} KiB", fontsize=10)
        axis.legend(fontsize=7)
    return save_figure(figure, path)


def draw_scaling(records: Sequence[dict[str, Any]], ranks_with_cores: float, path: Path) -> Path:
    """Weak and strong scaling: efficiency over ranks, measured, predicted, and what the cores allow."""
    modes = list(dict.fromkeys(record["mode"] for record in records))
    figure, axes = new_figure(len(modes))
    for axis, mode in zip(axes, modes, strict=True):
        mine = [record for record in records if record["mode"] == mode]
        ranks = [record["ranks"] for record in mine]
        axis.plot(ranks, [min(1, ranks_with_cores / p) for p in ranks], ":", color="black", label="cores allow")
        axis.plot(
            ranks, [record["compute_efficiency"] for record in mine], "--", color=COLOURS[1], label="compute alone"
        )
        if all(record["predicted_efficiency"] is not None for record in mine):
            predicted = [record["predicted_efficiency"] for record in mine]
            axis.plot(ranks, predicted, "-.", color=COLOURS[2], label="predicted")
        axis.plot(ranks, [record["efficiency"] for record in mine], "o-", color=COLOURS[4], label="measured")
        axis.set_xscale("log", base=2)
        axis.set_xticks(ranks, [str(p) for p in ranks])
        axis.set_ylim(0, None)
        axis.set_xlabel("ranks")
        axis.set_ylabel("efficiency")
        axis.set_title(f"{mode} scaling", fontsize=10)
        axis.legend(fontsize=7)
    return save_figure(figure, path)
