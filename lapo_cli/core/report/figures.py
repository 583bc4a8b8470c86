"""Figures of a run: returns against labelled frames, and against environment steps."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from lapo_cli.core.evaluation.evaluate import DEMONSTRATIONS, RANDOM_POLICY
from lapo_cli.core.evaluation.summary import Row
from lapo_cli.core.files import atomic_path
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.metrics import read_metrics

_RETURN = "charts/episodic_return"
_COLORS = ("#1b6ca8", "#b03a2e", "#4d7c3a", "#7fb2d6", "#8e5ea2", "#c98b2b")

Curves = dict[str, list[tuple[list[float], list[float]]]]
"""Label of a stage -> for each training its environment steps and mean returns."""


def draw(folder: Path, rows: Sequence[Row], seed_dirs: dict[str, list[Path]]) -> list[Path]:
    """Write the figures there is something to show in; returns their files.

    Args:
        rows: the table's rows.
        seed_dirs: game -> the folders of its seeds, whose learning curves are drawn.
    """
    games = list(seed_dirs)
    offline = {game: [row for row in rows if row.game == game and row.labels is not None] for game in games}
    online = {game: _learning_curves([stage for path in seed_dirs[game] for stage in _stages(path)]) for game in games}
    drawn = []
    if any(len(found) > 1 for found in offline.values()):
        drawn.append(
            _figure(folder / "offline.png", games, lambda axes, game: _offline(axes, offline[game], rows, game))
        )
    if any(online.values()):
        drawn.append(_figure(folder / "online.png", games, lambda axes, game: _online(axes, online[game], rows, game)))
    return drawn


def draw_learning_curve(stage: Path) -> None:
    """Write the returns of a stage's training against environment steps into its folder, once there are some."""
    curves = _learning_curves([stage])
    if curves:
        game = stage.parent.parent.name
        _figure(stage / "learning-curve.png", [game], lambda axes, game: _online(axes, curves, [], game))


def _stages(seed_dir: Path) -> list[Path]:
    """Folders of stages, without those that were set aside."""
    return sorted(folder for folder in seed_dir.glob("*/") if ".old-" not in folder.name)


def _figure(file: Path, games: list[str], panel: Any) -> Path:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(games))
    lines = -(-len(games) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(6.4 * columns, 4.2 * lines), squeeze=False)
    for axes, game in zip(grid.flat, games, strict=False):
        axes.set_ylabel("mean return")
        panel(axes, game)
        axes.set_title(game)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axes in grid.flat[len(games) :]:
        axes.set_visible(False)
    figure.tight_layout()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return file


def _references(axes: Any, rows: Sequence[Row], game: str) -> None:
    for method, style in ((DEMONSTRATIONS, "--"), (RANDOM_POLICY, ":")):
        for row in rows:
            if row.game == game and row.method == method and row.mean is not None:
                axes.axhline(row.mean, color="0.45", linestyle=style, linewidth=1, label=method)


def _offline(axes: Any, offline: Sequence[Row], rows: Sequence[Row], game: str) -> None:
    for color, method in zip(itertools.cycle(_COLORS), dict.fromkeys(row.method for row in offline), strict=False):
        of_method = [row for row in offline if row.method == method]
        counts = [row.labels for row in of_method]
        means = np.array([row.mean for row in of_method], float)
        bars = np.abs(np.array([[row.low, row.high] for row in of_method], float).T - means)
        axes.errorbar(counts, means, bars, marker="o", capsize=3, color=color, label=method)
    axes.set_xscale("log", base=2)
    ticks = sorted({row.labels for row in offline if row.labels is not None})
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.set_xlabel("labelled frames")
    axes.set_ylabel("mean return, 95 % interval")
    _references(axes, rows, game)


def _online(axes: Any, curves: Curves, rows: Sequence[Row], game: str) -> None:
    for color, (label, of_stage) in zip(itertools.cycle(_COLORS), curves.items(), strict=False):
        for number, (steps, returns) in enumerate(of_stage):
            axes.plot(steps, returns, color=color, linewidth=1.4, alpha=0.8, label=None if number else label)
    axes.set_xlabel("environment steps")
    _references(axes, rows, game)


def _learning_curves(stages: Sequence[Path]) -> Curves:
    curves: Curves = {}
    for stage in stages:
        lines = [line for line in read_metrics(stage) if _RETURN in line]
        if lines:
            label = str(StageDir(stage).try_read_config().get("label") or stage.name)
            curve = ([line["step"] for line in lines], [line[_RETURN] for line in lines])
            curves.setdefault(label, []).append(curve)
    return curves
