"""Statistics over games as points with intervals, one row for each policy."""

from collections.abc import Mapping, Sequence

from lapo_cli.core.evaluation.statistics import Estimate
from lapo_cli.core.report.figures.style import FAINT, Axes, color, legend_below, marker


def draw(axes: Axes, statistics: Mapping[str, Sequence[Estimate]], policies: Sequence[str]) -> None:
    """Every statistic (by name, one estimate a policy) with its own marker, the policies below one another."""
    step = 0.8 / max(1, len(statistics))
    for number, (name, estimates) in enumerate(statistics.items()):
        for row, estimate in enumerate(estimates):
            y = row - 0.4 + (number + 0.5) * step
            axes.hlines(y, estimate.low, estimate.high, color=color(number), linewidth=1.6)
            axes.plot(
                estimate.mean, y, marker=marker(number), color=color(number), linestyle="", markersize=5,
                label=None if row else name,
            )  # fmt: skip
    axes.axvline(0, color=FAINT, linewidth=1, linestyle=":")
    axes.axvline(1, color=FAINT, linewidth=1, linestyle="-.")
    axes.set_yticks(range(len(policies)), policies)
    axes.invert_yaxis()
    axes.set_xlabel("normalized return (0: random, 1: the paper's expert), 95 % interval")
    legend_below(axes, 3)
