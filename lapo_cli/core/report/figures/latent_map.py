"""The map of latent actions, each point with the true action that was taken."""

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects

from lapo_cli.core.report.figures.style import FAINT, Axes, color, legend_below, marker

_MOST = 10
_LEAST_NAMED = 0.05


def draw(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    groups: Sequence[int | None] | None,
    names: Sequence[str],
    axis_names: tuple[str, str],
) -> None:
    """Points (P, 2), coloured by their group; the most frequent groups are named where they lie.

    Args:
        groups: of each point, its index in ``names``; None of a point whose group is not known, or without groups.
        names: of the groups.
    """
    place = np.array(points, float)
    known = np.full(len(place), -1) if groups is None else np.array([-1 if g is None else g for g in groups])
    axes.plot(*place[known < 0].T, ".", color=FAINT, markersize=2.5, rasterized=True)
    frequent = sorted(set(known[known >= 0]), key=lambda group: -(known == group).sum())
    shown = [group for group in frequent if (known == group).sum() >= 0.01 * len(known)][:_MOST]
    rest = [group for group in frequent if group not in shown]
    for group in rest:
        axes.plot(*place[known == group].T, ".", color=FAINT, markersize=2.5, rasterized=True)
    for number, group in enumerate(shown):
        share = (known == group).mean()
        axes.plot(
            *place[known == group].T, marker(number), color=color(number), markersize=3, alpha=0.65,
            markeredgewidth=0, rasterized=True, label=f"{names[group]} ({share:.0%})",
        )  # fmt: skip
    if rest:
        axes.plot([], [], ".", color=FAINT, label="others")
    for number, group in enumerate(shown):
        if (known == group).mean() < _LEAST_NAMED:
            break  # In the middle of the others, where names would cover one another.
        x, y = np.median(place[known == group], axis=0)
        axes.text(
            x, y, names[group], color="white", fontsize=7.5, fontweight="bold", ha="center", va="center",
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground=_darker(color(number)))],
        )  # fmt: skip
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.tick_params(labelbottom=False, labelleft=False)
    legend_below(axes, 3, markerscale=2)


def _darker(of: str) -> str:
    return "#" + "".join(f"{int(int(of[i : i + 2], 16) * 0.6):02x}" for i in (1, 3, 5))
