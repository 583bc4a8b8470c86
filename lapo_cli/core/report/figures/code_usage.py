"""How many codes are in use, and how well the probe reads true actions, while stage 1 trains."""

from collections.abc import Mapping, Sequence

from lapo_cli.core.report.figures.style import Axes, color, legend_below, marker


def draw(axes: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Shares between 0 and 1 (steps and values, by name) against training steps."""
    for number, (name, (steps, values)) in enumerate(lines.items()):
        axes.plot(steps, values, color=color(number), marker=marker(number), markersize=3.5, linewidth=1.4, label=name)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("training steps of stage 1")
    axes.set_ylabel("share")
    legend_below(axes, 1)
