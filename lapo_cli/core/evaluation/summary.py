"""The table of a run: one row a game and policy, as values, as Markdown and as a file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lapo_cli
from lapo_cli.core.evaluation.statistics import Estimate, mean_return
from lapo_cli.core.files import atomic_write_json, atomic_write_text
from lapo_cli.core.games import get_game

ALL_GAMES = "mean of games"


@dataclass(frozen=True)
class Row:
    """One policy on one game.

    Attributes:
        mean, low, high: mean episodic return and its 95 % confidence interval.
        episodes: how many were played or, for demonstrations, recorded.
        seeds: how many trainings they come from.
        normalized: (mean - random) / (paper's expert - random).
        note: what else one should know to read the row.
    """

    game: str
    method: str
    mean: float | None
    low: float | None
    high: float | None
    episodes: int
    seeds: int
    normalized: float
    note: str = ""


@dataclass(frozen=True)
class Failure:
    """A game and seed that could not be finished."""

    game: str
    seed: int
    message: str


@dataclass(frozen=True)
class Summary:
    """What a run gave.

    Attributes:
        rows: games in order, policies in the order of the paper's argument.
        by_seed: the same for each training seed by itself.
        notes: sentences on how good the latent actions are.
        failures: what could not be finished.
        path: folder of ``summary.json`` and ``summary.md``.
        files: pictures and tables that were written.
    """

    rows: list[Row]
    by_seed: dict[int, list[Row]]
    notes: list[str]
    failures: list[Failure]
    path: Path
    files: list[Path] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "lapo_version": lapo_cli.__version__,
            "interval": "95 % percentile bootstrap over training seeds, then episodes",
            "rows": [asdict(row) for row in self.rows],
            "by_seed": {str(seed): [asdict(row) for row in rows] for seed, rows in self.by_seed.items()},
            "notes": self.notes,
            "failures": [asdict(failure) for failure in self.failures],
            "files": [str(file) for file in self.files],
        }

    def markdown(self) -> str:
        """Tables, the pooled one first."""
        parts = [_table("All training seeds", self.rows)]
        if len(self.by_seed) > 1:
            parts += [_table(f"Training seed {seed}", rows) for seed, rows in sorted(self.by_seed.items())]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        if self.failures:
            parts.append("\n".join(f"- {f.game}, seed {f.seed}: {f.message}" for f in self.failures))
        return "\n\n".join(parts) + "\n"

    def write(self) -> None:
        """Write ``summary.json`` and ``summary.md`` into ``path``."""
        self.files.extend([self.path / "summary.md", self.path / "summary.json"])
        atomic_write_text(self.path / "summary.md", self.markdown())
        atomic_write_json(self.path / "summary.json", self.as_json())


def make_row(game: str, method: str, returns: list[NDArray[np.float64]], note: str = "") -> Row:
    """A row from one array of episodic returns (E,) a training seed."""
    episodes = sum(len(array) for array in returns)
    return estimate_row(game, method, mean_return(returns), episodes, seeds=len(returns), note=note)


def estimate_row(game: str, method: str, estimate: Estimate, episodes: int, *, seeds: int, note: str = "") -> Row:
    """A row from an estimate made elsewhere."""
    normalized = get_game(game).normalize(estimate.mean)
    return Row(game, method, estimate.mean, estimate.low, estimate.high, episodes, seeds, normalized, note)


def with_mean_of_games(rows: list[Row]) -> list[Row]:
    """Rows, and after them the mean normalized return of every policy that all games have."""
    games = {row.game for row in rows}
    if len(games) < 2:
        return rows
    means = []
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [row for row in rows if row.method == method]
        if len(of_method) == len(games):
            normalized = float(np.mean([row.normalized for row in of_method]))
            episodes = sum(row.episodes for row in of_method)
            means.append(Row(ALL_GAMES, method, None, None, None, episodes, of_method[0].seeds, normalized))
    return rows + means


def _table(title: str, rows: list[Row]) -> str:
    lines = [
        f"### {title}",
        "",
        "| game | policy | mean return | 95 % interval | episodes | normalized return |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean = "" if row.mean is None else f"{row.mean:.2f}"
        interval = "" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
        note = f" ({row.note})" if row.note else ""
        lines.append(
            f"| {row.game} | {row.method}{note} | {mean} | {interval} | {row.episodes} | {row.normalized:.2f} |"
        )
    return "\n".join(lines)
