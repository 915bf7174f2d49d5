"""The comparison as a picture: a bar for the mean of each row, a dot for each domain."""

from collections.abc import Sequence
from pathlib import Path

from hvdkit.train.divide.scores import Row


def draw_comparison(path: Path, domains: Sequence[str], rows: Sequence[Row], unit: str) -> bool:
    """Draw `rows` to `path` (PNG); False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [row.name for row in rows]
    axes.barh(names, [row.mean for row in rows], color="lightgray", label="mean")
    for number, domain in enumerate(domains):
        axes.plot([row.losses[number] for row in rows], names, "o", markersize=4, label=domain)
    axes.invert_yaxis()
    axes.set(xlabel=f"held-out loss ({unit})", xlim=(0.9 * min(min(row.losses) for row in rows), None))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=120)
    return True
