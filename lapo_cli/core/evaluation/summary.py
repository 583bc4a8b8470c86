"""The table of a run: one row per game and policy, as values, as Markdown and as a file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lapo_cli
from lapo_cli.core.evaluation.statistics import Estimate
from lapo_cli.core.files import atomic_write_json, atomic_write_text

ALL_GAMES = "mean of games"
Key = tuple[str, int | None, int | None]
"""Method, labels and environment steps: what the policies of several seeds have in common."""
_NONE = "-"
_OPTIONAL = ("of demonstrations", "reference")


def title_of(key: Key) -> str:
    """A policy in words."""
    method, labels, env_steps = key
    words = [method]
    if labels is not None:
        words.append(f"{labels:,} labels")
    if env_steps is not None:
        words.append(f"{env_steps:,} steps")
    return ", ".join(words)


@dataclass(frozen=True)
class Row:
    """One policy on one game.

    Attributes:
        method: how the policy was trained.
        labels: labelled frames it was decoded from, if it was.
        env_steps: environment steps it was trained for, if it was.
        mean, low, high: mean episodic return and its 95 % confidence interval.
        episodes: how many were played or, for demonstrations, recorded.
        seeds: how many trainings they come from; in means of games the fewest of any game.
        normalized: (mean - random) / (paper's expert - random); None where those are not known. Means of games count a
            game 1 at most.
        share: the same relative to the demonstrations of the same table instead of the paper's expert; None where they
            are missing or no better than random play. Means of games count a game 1 at most.
        reference: the mean when the maintainers of lapo ran the same configuration; None where they have not.
        published: the paper's mean return of the same method, where it has one.
        stage: that trained it; empty for the random policy, demonstrations and means of games.
    """

    game: str
    method: str
    labels: int | None
    env_steps: int | None
    mean: float | None
    low: float | None
    high: float | None
    episodes: int
    seeds: int
    normalized: float | None
    share: float | None = None
    reference: float | None = None
    published: float | None = None
    stage: str = ""

    @property
    def estimate(self) -> Estimate:
        """Mean and interval; of means of games there is none."""
        assert self.mean is not None
        assert self.low is not None
        assert self.high is not None
        return Estimate(self.mean, self.low, self.high)

    @property
    def key(self) -> Key:
        """What it has in common with the rows of other games and seeds."""
        return self.method, self.labels, self.env_steps

    @property
    def title(self) -> str:
        """The policy in words."""
        return title_of(self.key)

    def cells(self) -> dict[str, str]:
        """Column -> what it shows, for tables of any form."""
        return {
            "game": self.game,
            "policy": self.title,
            "mean return": _NONE if self.mean is None else f"{self.mean:.2f}",
            "95 % interval": _NONE if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}",
            "episodes": f"{self.episodes:,}",
            "seeds": str(self.seeds),
            "normalized": _NONE if self.normalized is None else f"{self.normalized:z.2f}",
            "of demonstrations": _NONE if self.share is None else f"{self.share:z.2f}",
            "reference": _NONE if self.reference is None else f"{self.reference:.2f}",
        }


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
        by_seed: the rows of each training seed by itself.
        notes: sentences on how good the latent actions are, and on what was left out.
        failures: what could not be finished.
        path: folder of ``summary.json`` and ``summary.md``.
        files: figures and tables that were written.
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
            "rows": [_plain(row) for row in self.rows],
            "by_seed": {str(seed): [_plain(row) for row in rows] for seed, rows in self.by_seed.items()},
            "notes": self.notes,
            "failures": [asdict(failure) for failure in self.failures],
            "files": [str(file) for file in self.files],
        }

    def cells(self) -> list[dict[str, str]]:
        """The cells of every row of the pooled table."""
        return _cells(self.rows)

    def markdown(self) -> str:
        """Tables, the pooled one first."""
        parts = [_markdown("All training seeds", self.rows) if self.rows else "No policy was evaluated."]
        if len(self.by_seed) > 1:
            parts += [_markdown(f"Training seed {seed}", rows) for seed, rows in sorted(self.by_seed.items())]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        if self.failures:
            parts.append("\n".join(f"- {f.game}, seed {f.seed}: {f.message}" for f in self.failures))
        return "\n\n".join(parts) + "\n"

    def write(self) -> None:
        """Write ``summary.json`` and ``summary.md`` into ``path``."""
        self.files.extend([self.path / "summary.md", self.path / "summary.json"])
        atomic_write_text(self.path / "summary.md", self.markdown())
        atomic_write_json(self.path / "summary.json", self.as_json())


def share_of(mean: float | None, random: float | None, demonstrations: float | None) -> float | None:
    """(mean - random) / (demonstrations - random); None where it says nothing, see :class:`Row`."""
    if mean is None or random is None or demonstrations is None or demonstrations <= random:
        return None
    return (mean - random) / (demonstrations - random)


def with_mean_of_games(rows: list[Row]) -> list[Row]:
    """Rows, and after them the mean of every policy that all games have; a game counts 1 at most."""
    games = {row.game for row in rows}
    if len(games) < 2:
        return rows
    means = []
    for key in dict.fromkeys(row.key for row in rows):
        of_policy = [row for row in rows if row.key == key]
        normalized = [row.normalized for row in of_policy if row.normalized is not None]
        shares = [row.share for row in of_policy if row.share is not None]
        if len(normalized) == len(games):
            episodes, seeds = sum(row.episodes for row in of_policy), min(row.seeds for row in of_policy)
            share = _capped_mean(shares) if len(shares) == len(games) else None
            means.append(Row(ALL_GAMES, *key, None, None, None, episodes, seeds, _capped_mean(normalized), share))
    return rows + means


def _capped_mean(values: list[float]) -> float:
    return float(np.minimum(values, 1).mean())


def _plain(row: Row) -> dict[str, Any]:
    return {**asdict(row), "policy": row.title}


def _cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The cells of every row, without the optional columns that are empty."""
    cells = [row.cells() for row in rows]
    empty = {name for name in _OPTIONAL if all(of_row[name] == _NONE for of_row in cells)}
    return [{name: cell for name, cell in of_row.items() if name not in empty} for of_row in cells]


def _markdown(title: str, rows: Sequence[Row]) -> str:
    cells = _cells(rows)
    columns = list(cells[0]) if cells else []
    table = [columns, ["---"] * len(columns), *(list(of_row.values()) for of_row in cells)]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in table)])
