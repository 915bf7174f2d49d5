"""Shapley values as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from hvdkit.merge.shapley import ShapleyValues


def shapley_table(names: Sequence[str], found: ShapleyValues) -> list[str]:
    """Lines for a person: each submodel's value, its standard error where it was sampled, and their sum."""
    width = max(map(len, (*names, "sum")))
    is_sampled = any(found.errors)
    lines = [
        f"{name:<{width}}  {value:+.4f}" + (f"  +- {error:.4f}" if is_sampled else "")
        for name, value, error in zip(names, found.values, found.errors, strict=True)
    ]
    return [*lines, f"{'sum':<{width}}  {sum(found.values):+.4f}  ({found.evaluations} coalitions evaluated)"]


def draw_shapley(path: Path, names: Sequence[str], found: ShapleyValues, unit: str) -> bool:
    """Draw the values to `path` (PNG), in `unit`; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 1.4 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    errors = found.errors if any(found.errors) else None
    axes.barh(list(names), found.values, xerr=errors, color=["C0" if value >= 0 else "C3" for value in found.values])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=f"Shapley value ({unit})", title="what each submodel is worth in the merge")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    return True
