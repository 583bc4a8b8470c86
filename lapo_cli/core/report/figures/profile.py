"""The performance profile: which share of runs scores above each threshold (rliable)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.evaluation import statistics
from lapo_cli.core.evaluation.statistics import Returns
from lapo_cli.core.report.figures.style import Axes, color, legend_below

_STYLES = ("-", "--", "-.", ":")


def draw(axes: Axes, returns: Mapping[str, Returns]) -> None:
    """A curve with a 95 % band for every policy, of its normalized returns."""
    means = [score for of in returns.values() for runs in statistics.scores(of).values() for score in runs[:, 0]]
    thresholds: NDArray[np.float64] = np.linspace(min(0.0, *means) - 0.05, max(1.0, *means) + 0.05, 101)
    for number, (policy, of) in enumerate(returns.items()):
        point = statistics.performance_profile(statistics.scores(of), thresholds)[:, 0]
        draws = statistics.performance_profile(statistics.resampled_scores(of), thresholds)
        low, high = np.percentile(draws, [2.5, 97.5], axis=1)
        axes.plot(
            thresholds, point, color=color(number), linestyle=_STYLES[number % len(_STYLES)], linewidth=1.5,
            label=policy,
        )  # fmt: skip
        axes.fill_between(thresholds, low, high, color=color(number), alpha=0.12, linewidth=0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("normalized return τ")
    axes.set_ylabel("share of runs above τ")
    legend_below(axes, 1)
