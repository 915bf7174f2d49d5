"""The picture of a collective's benchmark: time over message size, both logarithmic, one panel per number of ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks.peers import HVDKIT, KIB
from benchmarks.summary import Summary

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
    figure, axes = pyplot.subplots(1, len(summaries), figsize=(5.2 * len(summaries) + 0.4, 5.6), sharey=True,
                                   squeeze=False, layout="constrained", facecolor="white")  # fmt: skip
    handles: dict[str, Line2D] = {}
    for axis, summary in zip(axes[0], summaries, strict=True):
        handles |= _panel(axis, summary)
    axes[0][0].set_ylabel("time of a call (median)", color=_INK)
    collective = summaries[0].outcome.collective
    figure.suptitle(f"{collective} of float32 on one machine: lower is better", color=_INK, fontsize=13)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)),
                  frameon=False, labelcolor=_INK, fontsize=9.5, handlelength=3.2)  # fmt: skip
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axis: Axes, summary: Summary) -> dict[str, Line2D]:
    sizes = summary.sizes()
    handles: dict[str, Line2D] = {}
    own = [name for name in summary.contenders() if name.startswith(HVDKIT) and name != summary.reference]
    for name in summary.contenders():
        points = [(nbytes, result.median_s * 1e6) for nbytes in sizes if (result := summary.at(name, nbytes))]
        if name == summary.reference:
            style: dict[str, Any] = {"color": _CHOICE, "lw": 2.6, "marker": "o", "ms": 5.5, "zorder": 5}
        elif name in _PEERS:
            colour, mark = _PEERS[name]
            style = {
                "color": colour,
                "lw": 1.4,
                "ls": (0, (5, 1.5)),
                "marker": mark,
                "ms": 5,
                "mfc": "white",
                "zorder": 3,
            }
        else:
            style = {"color": _ALGORITHMS[own.index(name) % len(_ALGORITHMS)], "lw": 1.3, "marker": ".", "zorder": 4}
        (handles[name],) = axis.plot(*zip(*points, strict=True), **style)
    bounds = [(nbytes, bound * 1e6) for nbytes in sizes if (bound := summary.bound_s(nbytes)) is not None]
    if bounds:
        (handles[_BOUND],) = axis.plot(*zip(*bounds, strict=True), color="#aaaaaa", lw=6, alpha=0.45,
                                       solid_capstyle="butt", zorder=1)  # fmt: skip
    axis.set_title(f"{summary.outcome.ranks} ranks", color=_INK, fontsize=11)
    axis.set_xlabel("message", color=_INK)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    # Every second size at most, so that the labels keep apart.
    axis.set_xticks(sizes[:: max(1, -(-len(sizes) // 7))])
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(FuncFormatter(lambda nbytes, _: _short_size(nbytes)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda micros, _: _short_time(micros)))
    axis.yaxis.set_tick_params(labelleft=True)
    axis.grid(True, color="#e6e6e6", lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(color="#bbbbbb", labelcolor=_INK, labelsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#bbbbbb")
    return handles


def _short_size(nbytes: float) -> str:
    return f"{nbytes / KIB**2:.3g} MiB" if nbytes >= KIB**2 else f"{nbytes / KIB:.3g} KiB"


def _short_time(micros: float) -> str:
    for unit, name in ((1e6, "s"), (1e3, "ms")):
        if micros >= unit:
            return f"{micros / unit:g} {name}"
    return f"{micros:g} µs"
