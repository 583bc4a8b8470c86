"""Prediction error of the world model against the number of steps that it predicts ahead."""

from collections.abc import Mapping
from typing import Any

from lapo_cli.core.report.figures.style import Axes, color, legend_below, marker

NAMES = {
    "rollout": "rollout: predictions fed back",
    "one step": "one step from real frames",
    "copying": "repeating the first frame",
}


def draw(axes: Axes, errors: Mapping[str, Any]) -> None:
    """Mean squared errors (H,) by kind of prediction."""
    for number, (kind, name) in enumerate(NAMES.items()):
        of_kind = errors[kind]
        axes.plot(
            range(1, len(of_kind) + 1), of_kind, color=color(number), marker=marker(number), markersize=4, label=name
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps ahead")
    axes.set_ylabel("mean squared error")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(axes, 1)
