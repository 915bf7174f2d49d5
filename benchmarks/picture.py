"""The picture of a collective's benchmark: time over message size, both logarithmic, one panel per number of ranks.

Below it each time over that of hvdkit's own choice, since six decades hide a factor of three.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks.peers import KIB
from benchmarks.summary import Result, Summary

# Colour-blind safe (P. Tol's bright and muted schemes): peers dashed with open marks, hvdkit's algorithms thin and
# solid, its own choice thick.
_PEERS = {
    "Horovod": ("#cc6677", "s"),
    "Open MPI": ("#999933", "^"),
    "Open MPI tuned": ("#117733", "v"),
    "Gloo": ("#882255", "D"),
}
_ALGORITHMS = ("#88ccee", "#44aa99", "#332288", "#ddcc77", "#aa4499", "#888888", "#661100")
_CHOICE = "#0055aa"
_INK = "#333333"
_BOUND = "bound (memory)"


def draw(summaries: Sequence[Summary], path: Path) -> None:
    """Write the picture to `path`."""
    figure, axes = pyplot.subplots(2, len(summaries), figsize=(5.2 * len(summaries) + 0.4, 8.4), sharey="row",
                                   sharex="col", squeeze=False, layout="constrained", facecolor="white",
                                   height_ratios=(3, 2))  # fmt: skip
    handles: dict[str, Line2D] = {}
    for column, summary in enumerate(summaries):
        time_axis, ratio_axis = axes[0][column], axes[1][column]
        handles |= _plot(time_axis, summary, lambda result: result.median_s * 1e6)
        _plot(ratio_axis, summary, lambda result: result.reference_is_times_as_fast)
        bounds = [(nbytes, bound * 1e6) for nbytes in summary.sizes() if (bound := summary.bound_s(nbytes))]
        if bounds:
            (handles[_BOUND],) = time_axis.plot(*zip(*bounds, strict=True), color="#aaaaaa", lw=6, alpha=0.45,
                                                solid_capstyle="butt", zorder=1)  # fmt: skip
        time_axis.set_title(f"{summary.outcome.ranks} ranks", color=_INK, fontsize=11)
        ratio_axis.set_xlabel("message", color=_INK)
        _dress(time_axis, summary.sizes(), _short_time)
        _dress(ratio_axis, summary.sizes(), lambda ratio: f"{ratio:g} x")
    axes[0][0].set_ylabel("time of a call (median)", color=_INK)
    axes[1][0].set_ylabel(f"time over that of {summaries[0].reference}", color=_INK)
    collective = summaries[0].outcome.collective
    figure.suptitle(f"{collective} of float32 on one machine: lower is better", color=_INK, fontsize=13)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)),
                  frameon=False, labelcolor=_INK, fontsize=9.5, handlelength=3.2)  # fmt: skip
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot(axis: Axes, summary: Summary, value: Callable[[Result], float | None]) -> dict[str, Line2D]:
    """A line per contender; returns the lines by name."""
    handles: dict[str, Line2D] = {}
    algorithms = iter(_ALGORITHMS * 2)
    for name in summary.contenders():
        results = [result for nbytes in summary.sizes() if (result := summary.at(name, nbytes))]
        points = [(result.bytes, number) for result in results if (number := value(result)) is not None]
        style: dict[str, Any]
        if name == summary.reference:
            style = {"color": _CHOICE, "lw": 2.6, "marker": "o", "ms": 5.5, "zorder": 5}
        elif name in _PEERS:
            colour, mark = _PEERS[name]
            style = {"color": colour, "lw": 1.4, "ls": (0, (5, 1.5)), "marker": mark, "mfc": "white", "ms": 5}
        else:
            style = {"color": next(algorithms), "lw": 1.3, "marker": ".", "zorder": 4}
        if points:
            (handles[name],) = axis.plot(*zip(*points, strict=True), **style)
    return handles


def _dress(axis: Axes, sizes: Sequence[int], name_value: Callable[[float], str]) -> None:
    """Logarithmic axes with few, named ticks."""
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    # Labels a seventh of the width apart at least.
    ticks: list[int] = []
    for nbytes in sizes:
        if not ticks or nbytes / ticks[-1] >= (sizes[-1] / sizes[0]) ** (1 / 7):
            ticks.append(nbytes)
    axis.set_xticks(ticks)
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(FuncFormatter(lambda nbytes, _: _short_size(nbytes)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: name_value(value)))
    for ticked in (axis.xaxis, axis.yaxis):
        ticked.set_tick_params(labelleft=True, labelbottom=True)
    axis.grid(True, color="#e6e6e6", lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(color="#bbbbbb", labelcolor=_INK, labelsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#bbbbbb")


def _short_size(nbytes: float) -> str:
    return f"{nbytes / KIB**2:.3g} MiB" if nbytes >= KIB**2 else f"{nbytes / KIB:.3g} KiB"


def _short_time(micros: float) -> str:
    for unit, name in ((1e6, "s"), (1e3, "ms")):
        if micros >= unit:
            return f"{micros / unit:g} {name}"
    return f"{micros:g} µs"
