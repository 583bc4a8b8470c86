"""Figures as PNG files, for use in a paper or a chat."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lapo_cli.core.evaluation.statistics import mean_of_evaluations
from lapo_cli.core.report.figures import curves
from lapo_cli.core.report.figures.curves import Line
from lapo_cli.core.report.figures.style import Axes, Draw, png
from lapo_cli.core.report.panels import levels_of, offline_lines, online_lines
from lapo_cli.core.report.results import RunResults, read_stage
from lapo_cli.core.report.tables import policy_rows
from lapo_cli.core.run_dir import StageDir

_ONLINE: Callable[..., None] = partial(curves.draw, x_label="environment steps", y_label="mean return, 95 % interval")
_OFFLINE: Callable[..., None] = partial(
    curves.draw, x_label="labelled frames", y_label="mean return, 95 % interval", log=2
)


def write_images(run: RunResults, folder: Path) -> list[Path]:
    """Write ``offline.png`` and ``online.png`` of the games there is a curve of; returns the files."""
    rows = {game: {run.name: policy_rows(run, game)} for game in run.games}
    levels = {game: levels_of(rows[game]) for game in run.games}
    offline = {game: offline_lines(rows[game]) for game in run.games}
    online = {game: online_lines([run], game) for game in run.games}

    def panels(draw: Callable[..., None], of_game: dict[str, list[Line]]) -> list[tuple[str, Draw]]:
        def panel(axes: Axes, game: str) -> None:
            draw(axes, of_game[game], levels=levels[game])

        return [(game, partial(panel, game=game)) for game, lines in of_game.items() if lines]

    written = []
    for name, draw, of_game in (("offline.png", _OFFLINE, offline), ("online.png", _ONLINE, online)):
        found = panels(draw, of_game)
        if any(len(line.x) > 1 for lines in of_game.values() for line in lines):
            written.append(png(folder / name, found))
    return written


def draw_learning_curve(folder: Path) -> None:
    """Write ``learning-curve.png`` into a stage's folder: the evaluations on the way, once there are some."""
    stage = read_stage(StageDir(folder))
    if stage.evaluations:
        estimates = [mean_of_evaluations([found]) for found in stage.evaluations.values()]
        line = Line.of(stage.label, list(stage.evaluations), estimates)
        png(folder / "learning-curve.png", [(folder.parent.parent.name, lambda axes: _ONLINE(axes, [line]))])
