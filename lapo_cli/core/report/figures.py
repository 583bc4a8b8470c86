"""Pictures of a run: returns against labelled frames, and against environment steps."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from lapo_cli.core.evaluation.summary import Row
from lapo_cli.core.files import atomic_path
from lapo_cli.core.run_dir import SeedDir
from lapo_cli.core.training.checkpoints import EXPERT, ONLINE, RL_ONLY, SCRATCH
from lapo_cli.core.training.metrics import read_metrics

_CURVES = {
    ONLINE: ("LAPO fine-tuned online", "#1b6ca8"),
    RL_ONLY: ("LAPO fine-tuned online, RL only", "#7fb2d6"),
    SCRATCH: ("PPO from scratch", "#b03a2e"),
    EXPERT: ("PPO expert", "#4d7c3a"),
}
_RETURN = "charts/episodic_return"


def draw(folder: Path, rows: list[Row], seed_dirs: dict[str, list[SeedDir]]) -> list[Path]:
    """Write the pictures there is something to show in; returns their files.

    Args:
        rows: the table's rows.
        seed_dirs: game -> the runs whose learning curves are drawn.
    """
    games = list(seed_dirs)
    offline = {game: [row for row in rows if row.game == game and "labelled frames" in row.method] for game in games}
    online = {game: _learning_curves([s.path for s in seed_dirs[game]], list(_CURVES)) for game in games}
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
    curves = _learning_curves([stage.parent], [stage.name])
    if curves:
        game = stage.parent.parent.name
        _figure(stage / "learning-curve.png", [game], lambda axes, game: _online(axes, curves, [], game))


def _figure(file: Path, games: list[str], panel: Any) -> Path:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(games))
    lines = -(-len(games) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(6.4 * columns, 4.2 * lines), squeeze=False)
    for axes, game in zip(grid.flat, games, strict=False):
        panel(axes, game)
        axes.set_title(game)
        axes.set_ylabel("mean return")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axes in grid.flat[len(games) :]:
        axes.set_visible(False)
    figure.tight_layout()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    return file


def _references(axes: Any, rows: list[Row], game: str) -> None:
    for method, style in (("demonstrations (expert)", "--"), ("random policy", ":")):
        for row in rows:
            if row.game == game and row.method == method and row.mean is not None:
                axes.axhline(row.mean, color="0.45", linestyle=style, linewidth=1, label=method)


def _offline(axes: Any, offline: list[Row], rows: list[Row], game: str) -> None:
    counts = [int(re.findall(r"(\d+) labelled", row.method)[0]) for row in offline]
    means = np.array([row.mean for row in offline], float)
    bars = np.abs(np.array([[row.low, row.high] for row in offline], float).T - means)
    axes.errorbar(
        counts, means, bars, marker="o", capsize=3, color="#1b6ca8", label="LAPO decoded offline, 95 % interval"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("labelled frames")
    _references(axes, rows, game)


def _online(axes: Any, curves: dict[str, list[tuple[list[float], list[float]]]], rows: list[Row], game: str) -> None:
    for stage, of_stage in curves.items():
        label, color = _CURVES[stage]
        for number, (steps, returns) in enumerate(of_stage):
            axes.plot(steps, returns, color=color, linewidth=1.4, alpha=0.8, label=None if number else label)
    axes.set_xlabel("environment steps")
    _references(axes, rows, game)


def _learning_curves(folders: list[Path], stages: list[str]) -> dict[str, list[tuple[list[float], list[float]]]]:
    curves: dict[str, list[tuple[list[float], list[float]]]] = {}
    for stage in stages:
        for folder in folders:
            lines = [line for line in read_metrics(folder / stage) if _RETURN in line]
            if lines:
                curve = ([line["step"] for line in lines], [line[_RETURN] for line in lines])
                curves.setdefault(stage, []).append(curve)
    return curves
