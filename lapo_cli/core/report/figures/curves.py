"""Return against environment steps or labelled frames, with intervals, one line for each method."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lapo_cli.core.evaluation.statistics import Estimate
from lapo_cli.core.report.figures.style import FAINT, Axes, color, legend_below, marker


@dataclass(frozen=True)
class Line:
    """One method.

    Attributes:
        label: its name.
        x, mean: (P,).
        low, high: the ends of the intervals, (P,); None where there are none.
        published: whether it is the paper's and not this run's.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    published: bool = False

    @classmethod
    def of(cls, label: str, x: Sequence[float], estimates: Sequence[Estimate]) -> "Line":
        """With the intervals of (P,) estimates."""
        return cls(label, x, [e.mean for e in estimates], [e.low for e in estimates], [e.high for e in estimates])


def draw(
    axes: Axes,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[tuple[str, float]] = (),
    log: int | None = None,
) -> None:
    """Lines with bands; those of the paper dashed.

    Args:
        levels: names and heights of horizontal lines to compare with.
        log: base of a logarithmic axis of x; a point at 0 then lies at its left end.
    """
    smallest = min((x for line in lines for x in line.x if x > 0), default=1.0)
    for number, line in enumerate(lines):
        x = np.maximum(line.x, smallest / 2) if log else np.asarray(line.x, float)
        style = {"linestyle": "--", "markerfacecolor": "none"} if line.published else {"linestyle": "-"}
        look = {"color": color(number), "marker": marker(number), "markersize": 4.5, "linewidth": 1.4, **style}
        axes.plot(x, line.mean, label=line.label, **look)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=color(number), alpha=0.18, linewidth=0)
            if len(x) == 1:
                axes.vlines(x, line.low, line.high, color=color(number), linewidth=1.2)
    for (name, height), style_of in zip(levels, (":", "-.", "--"), strict=False):
        axes.axhline(height, color=FAINT, linestyle=style_of, linewidth=1.2, label=name)
    if log:
        axes.set_xscale("log", base=log)
    ticks = sorted({x for line in lines for x in line.x if x > 0})
    if log == 2 and len(ticks) <= 12:
        axes.set_xticks(ticks, [f"{tick / 1024:g}k" if tick >= 1024 else f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
    else:
        axes.xaxis.set_major_formatter(lambda x, position: _short(x))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    legend_below(axes, 1 if max((len(line.label) for line in lines), default=0) > 26 else 2)


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
