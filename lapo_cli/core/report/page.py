"""The report of one run, or the comparison of several, as one HTML file that needs no network."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

import jinja2
import yaml
from markupsafe import Markup, escape

import lapo_cli
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.evaluation.summary import Row, title_of
from lapo_cli.core.files import atomic_write_text
from lapo_cli.core.report import panels, paper, tables
from lapo_cli.core.report.figures import intervals, profile
from lapo_cli.core.report.figures.style import svg
from lapo_cli.core.report.panels import Panel, Reel, Strips
from lapo_cli.core.report.results import RunResults, SeedResults, Store, read_run
from lapo_cli.core.report.tables import StatisticsRow
from lapo_cli.core.report.warnings import Notice, warnings_of
from lapo_cli.core.run_dir import RunDir

REPORT = "report.html"
COMPARISON = "comparison.html"
_FILM_BYTES = 9_000_000
"""Of all films together, as text of the page; with figures a page of 16 games stays below 15 MB."""
_MOST_GAME_BYTES = 1_500_000
_OPEN_GAMES = 2
"""Games whose section is open when the page is."""
_FEWEST_RUNS = 3
"""Runs (games and seeds) from which a performance profile is drawn."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class SeedView:
    """What is shown of the one training of a game whose latent actions and films are shown."""

    run: str
    seed: int
    latents: list[Panel]
    error: Panel | None
    imagined: Reel | None
    strips: Strips | None
    reels: list[Reel]
    stores: dict[str, Store]


@dataclass(frozen=True)
class GameView:
    """A game's section; rows with the names of their runs."""

    name: str
    rows: list[tuple[str, Row]]
    curves: list[Panel]
    seeds: list[SeedView]


@dataclass
class _Drawn:
    """Draws panels as SVG, each under a name of its own."""

    count: int = field(default=0)

    def __call__(self, panel: Panel) -> Markup:
        assert panel.draw is not None
        self.count += 1
        return Markup(svg(panel.draw, str(self.count), height=panel.height))


def write_report(run: Path) -> Path:
    """Make ``report.html`` in a run directory from what is there; returns it. An older one is replaced as a whole.

    Raises:
        RunDirError: it is not a run directory.
        DiskFullError: the page does not fit; an older one is as it was.
    """
    return _write(run / REPORT, [read_run(run)])


def write_comparison(runs: Sequence[Path], file: Path) -> Path:
    """Make a page that compares several runs; returns it.

    Raises:
        RunDirError: one of them is not a run directory.
        DiskFullError: the page does not fit.
    """
    return _write(file, [read_run(run, name) for run, name in zip(runs, _names(runs), strict=True)])


def make(paths: Sequence[Path]) -> Path:
    """The report of one run, or the comparison of several in the folder of the first; see the two functions above."""
    roots = list(dict.fromkeys(RunDir.open(path).path for path in paths))
    return write_report(roots[0]) if len(roots) == 1 else write_comparison(roots, roots[0] / COMPARISON)


def _names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path or, where two are equal, as many as tell all apart."""
    parts = [run.absolute().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run.name} ({number})" for number, run in enumerate(runs, 1)]


def _write(file: Path, runs: list[RunResults]) -> Path:
    atomic_write_text(file, render(runs))
    return file


def render(runs: Sequence[RunResults]) -> str:
    """The page of these runs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lapo_cli.core.report", "template"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["draw"] = _Drawn()
    environment.filters["unbroken"] = _unbroken
    games = list(dict.fromkeys(game for run in runs for game in run.games))
    views = [_game(runs, game, min(_MOST_GAME_BYTES, _FILM_BYTES // max(1, len(games)))) for game in games]
    # Means over different games cannot be compared.
    shared = [game for game in games if all(run.of(game) for run in runs)]
    found = tables.together({run.name: tables.statistics_rows(run, shared) for run in runs if len(shared) > 1})
    newest = max((run.newest for run in runs if run.newest is not None), default=None)
    return environment.get_template("page.html.j2").render(
        title="Comparison of runs" if len(runs) > 1 else f"{runs[0].name}: what was learnt",
        version=lapo_cli.__version__,
        runs=runs,
        newest=newest,
        warnings=[_named(run, runs, warning) for run in runs for warning in warnings_of(run)],
        games=views,
        open_games=_OPEN_GAMES,
        with_shares=any(row.share is not None for view in views for _, row in view.rows),
        referenced=any(row.reference is not None for view in views for _, row in view.rows),
        overall=_overall(runs, views, shared, found),
        over=_over(shared, games),
        statistics=found,
        statistic_names=list(tables.STATISTICS),
        stages=[row for run in runs for row in tables.stage_rows(run)],
        changed={run.name: tables.changed_keys(run) for run in runs},
        configurations={
            run.name: yaml.safe_dump(run.run.config.model_dump(mode="json"), sort_keys=False) for run in runs
        },
        paper=paper.NOTE,
        css=_resource("page.css"),
        script=_resource("player.js"),
    )


def _named(run: RunResults, runs: Sequence[RunResults], notice: Notice) -> Notice:
    """A warning that says of which run it is, where there are several."""
    named = len(runs) == 1 or notice.where == run.name
    return notice if named else replace(notice, where=f"{run.name}, {notice.where}")


def _unbroken(text: str) -> Markup:
    """Text in which no line breaks within an option of the command line."""
    return Markup(re.sub(r"--[\w-]+", r'<span class="option">\g<0></span>', str(escape(text))))


def _resource(name: str) -> Markup:
    return Markup(resources.files("lapo_cli.core.report").joinpath("template", name).read_text())


def _over(shared: Sequence[str], games: Sequence[str]) -> str:
    """What means are over, in words."""
    return "all games" if len(shared) == len(games) else f"the {len(shared)} games that all runs have"


def _overall(
    runs: Sequence[RunResults],
    games: Sequence[GameView],
    shared: Sequence[str],
    found: Sequence[tuple[str, StatisticsRow]],
) -> list[Panel]:
    """Figures over the games that all runs share."""
    several = len(runs) > 1
    shown = []
    if found:
        names = [f"{run}: {row.title}" if several else row.title for run, row in found]
        estimates = {name: [row.statistics[name] for _, row in found] for name in tables.STATISTICS}
        means = (estimate.mean for estimate in estimates["mean"])
        alt = "; ".join(f"{name}: mean {mean:.2f}" for name, mean in zip(names, means, strict=True))
        shown.append(
            Panel(
                f"Normalized return over {_over(shared, [view.name for view in games])}",
                alt,
                "Stratified bootstrap: games are fixed, training seeds and episodes are drawn anew.",
                lambda axes: intervals.draw(axes, estimates, names),
                0.9 + 0.34 * len(found),
            )
        )
    profiles = {
        f"{run.name}: {title_of(key)}" if several else title_of(key): returns
        for run in runs
        for key, (stage, returns) in tables.scores_of(run, shared).items()
        if stage and sum(map(len, returns.values())) >= _FEWEST_RUNS
    }
    if profiles and len(shared) > 1:
        shown.append(
            Panel(
                "Performance profile",
                "For every policy the share of runs (a game and a training seed each) above each normalized return.",
                "A run is one game and training seed. Higher is better; bands: 95 %.",
                lambda axes: profile.draw(axes, profiles),
                3.6,
            )
        )
    for run in runs if not several else []:
        shown += panels.over_games(run, {game.name: [row for _, row in game.rows] for game in games})
    return shown


def _game(runs: Sequence[RunResults], game: str, most_bytes: int) -> GameView:
    rows = {run.name: tables.policy_rows(run, game) for run in runs}
    curves = [panels.online(runs, game, rows), panels.offline(rows)]
    with_game = [run for run in runs if run.of(game)]
    seeds = [_seed(run, run.of(game), most_bytes // len(with_game)) for run in with_game]
    return GameView(game, tables.together(rows), curves, seeds)


def _seed(run: RunResults, seeds: Sequence[SeedResults], most_bytes: int) -> SeedView:
    """Of all seeds, the first that has been measured."""
    seed = next((seed for seed in seeds if seed.latents is not None), seeds[0])

    def attempt(make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except CorruptDataError as error:
            run.problems.append(str(error))
            return None

    reels = attempt(lambda: panels.playing(seed, most_bytes * 2 // 3)) or ()
    return SeedView(
        run.name,
        seed.seed,
        panels.latent_panels(seed),
        panels.error_panel(seed),
        attempt(lambda: panels.imagination(seed, most_bytes // 3)),
        attempt(lambda: panels.strips(seed)),
        [reel for reel in reels if reel.films],
        seed.demonstrations["stores"] if seed.demonstrations else {},
    )
