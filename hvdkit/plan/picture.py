"""Scaling efficiency and step time over ranks as a picture."""

from pathlib import Path

from hvdkit.plan.plan import Plan


def draw_scaling(path: Path, plan: Plan, title: str) -> None:
    """Draw to `path` (PNG); needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    ranks = [point.ranks.size for point in plan.scaling]
    for item in plan.stages:
        stage = item.stage
        label = f"stage {stage}" + ("" if item.fits else " (does not fit)")
        left.plot(ranks, [point.efficiency[stage] for point in plan.scaling], "o-", label=label, markersize=3)
        right.plot(ranks, [point.step_s[stage] for point in plan.scaling], "o-", label=label, markersize=3)
    left.set(xlabel="ranks", ylabel="scaling efficiency", ylim=(0, None))
    right.set(xlabel="ranks", ylabel="step (s)", ylim=(0, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(count) for count in ranks])
        axes.axvline(plan.ranks.per_host, color="gray", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3)
    left.annotate("one host", (plan.ranks.per_host, 0.02), textcoords="offset points", xytext=(4, 0), color="gray")
    left.legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
