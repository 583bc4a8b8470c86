"""The tables of the report: policies, statistics over games, stages, and configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.config_loading import flat, load_config
from lapo_cli.core.envs.base import normalized
from lapo_cli.core.errors import ConfigError
from lapo_cli.core.evaluation import statistics
from lapo_cli.core.evaluation.evaluate import RANDOM_POLICY
from lapo_cli.core.evaluation.measurements import DEMONSTRATIONS
from lapo_cli.core.evaluation.statistics import Estimate, Returns, estimate, mean_return
from lapo_cli.core.evaluation.summary import Key, share_of, title_of
from lapo_cli.core.progress import clock_time
from lapo_cli.core.report import paper
from lapo_cli.core.report.results import Policy, RunResults, SeedResults

_SCRATCH = "scratch"


@dataclass(frozen=True)
class PolicyRow:
    """One policy of one game, pooled over training seeds.

    Attributes:
        run: the name of its run.
        stage: that trained it.
        estimate: of the mean return.
        share: see :class:`lapo_cli.core.evaluation.summary.Row`; of the means of this run.
        published: the paper's return of the same method, where it has one.
        reference: the mean return when the maintainers of lapo ran the same configuration, where they have.
    """

    run: str
    game: str
    stage: str
    key: Key
    estimate: Estimate
    normalized: float | None
    episodes: int
    seeds: int
    share: float | None
    published: float | None
    reference: float | None

    @property
    def title(self) -> str:
        """The policy in words."""
        return title_of(self.key)


def pooled(seeds: Sequence[SeedResults]) -> dict[Key, list[Policy]]:
    """The policies of a game's seeds by what they have in common, in the order of tables."""
    found: dict[Key, list[Policy]] = {}
    for policy in sorted(
        (p for seed in seeds for p in seed.policies), key=lambda p: (p.order, p.method, p.labels or 0)
    ):
        found.setdefault(policy.key, []).append(policy)
    return found


def policy_rows(runs: Sequence[RunResults], game: str) -> list[PolicyRow]:
    """A row for every policy of a game."""
    rows = []
    for run in runs:
        seeds = run.of(game)
        # All seeds of a game see the same demonstrations.
        of = {key: found[: 1 if key[0] == DEMONSTRATIONS else None] for key, found in pooled(seeds).items()}
        estimates = {key: mean_return([policy.returns for policy in policies]) for key, policies in of.items()}
        means = {key: found.mean for key, found in estimates.items()}
        bounds = (means.get((RANDOM_POLICY, None, None)), means.get((DEMONSTRATIONS, None, None)))
        for key, policies in of.items():
            found = estimates[key]
            stage = "expert" if key[0] == DEMONSTRATIONS else policies[0].stage
            rows.append(
                PolicyRow(
                    run.name,
                    game,
                    policies[0].stage,
                    key,
                    found,
                    normalized(found.mean, seeds[0].reference),
                    sum(len(policy.returns) for policy in policies),
                    len(policies),
                    share_of(found.mean, *bounds),
                    paper.published(game, stage, key[1]),
                    run.references.get((game, *key)),
                )
            )
    return rows


def scores_of(run: RunResults, games: Sequence[str]) -> dict[Key, tuple[str, Returns]]:
    """Stage and normalized returns of every policy that was trained on all of these games."""
    games = [game for game in games if run.of(game)[0].normalize(0.0) is not None]
    found: dict[Key, dict[str, list[NDArray[np.float64]]]] = {}
    stages: dict[Key, str] = {}
    for game in games:
        reference = run.of(game)[0].reference
        for key, policies in pooled(run.of(game)).items():
            if policies[0].order == 0 or policies[0].stage:
                stages[key] = policies[0].stage
                values = (normalized(policy.returns, reference) for policy in policies)
                found.setdefault(key, {})[game] = [value for value in values if value is not None]
    return {key: (stages[key], of) for key, of in found.items() if len(of) == len(games)}


@dataclass(frozen=True)
class StatisticsRow:
    """One policy over all games: estimates by the names of :data:`STATISTICS`, and of the improvement over scratch."""

    run: str
    title: str
    statistics: dict[str, Estimate]
    improvement: Estimate | None


STATISTICS = {
    "mean": statistics.mean_score,
    "median": statistics.median_score,
    "interquartile mean": statistics.interquartile_mean,
}


_Row = TypeVar("_Row", PolicyRow, StatisticsRow)


def together(rows: Sequence[_Row]) -> list[_Row]:
    """Rows of several runs with those of the same policy one after the other."""
    titles = list(dict.fromkeys(row.title for row in rows))
    return sorted(rows, key=lambda row: titles.index(row.title))


def statistics_rows(run: RunResults, games: Sequence[str]) -> list[StatisticsRow]:
    """A row for every policy that was trained on all of these games, which the run has."""
    of_run = scores_of(run, games)
    scratch = next((returns for stage, returns in of_run.values() if stage == _SCRATCH), None)
    rows = []
    for key, (stage, returns) in of_run.items():
        found = {name: estimate(statistic, returns) for name, statistic in STATISTICS.items()}
        better = None
        if scratch is not None and stage != _SCRATCH:
            better = estimate(statistics.probability_of_improvement, returns, scratch)
        rows.append(StatisticsRow(run.name, title_of(key), found, better))
    return rows


@dataclass(frozen=True)
class StageRow:
    """One stage of one game and seed, as it ran."""

    run: str
    game: str
    seed: int
    stage: str
    done: bool
    steps: str
    time: str
    rate: str
    device: str
    versions: str


def stage_rows(run: RunResults) -> Iterator[StageRow]:
    """A row for every stage of every game and seed."""
    for seed in run.seeds:
        for stage in seed.stages.values():
            about, seconds = stage.about, stage.seconds
            rate = "-" if not seconds else f"{stage.steps / seconds:,.1f}"
            device = " ".join(str(about[name]) for name in ("device", "precision") if about.get(name))
            versions = f"lapo {about.get('lapo_version', '?')}, torch {about.get('torch_version', '?')}"
            steps = f"{stage.steps:,}" if stage.steps else "-"
            time = "-" if seconds is None else clock_time(seconds)
            yield StageRow(run.name, seed.game, seed.seed, stage.label, stage.done, steps, time, rate, device, versions)


def changed_keys(run: RunResults) -> dict[str, tuple[str, str]]:
    """Keys of the configuration that differ from the preset's: key -> the preset's value and the run's."""
    try:
        preset = flat(load_config(run.run.preset))
    except ConfigError:
        return {}
    mine = flat(run.run.config)
    return {
        key: (str(preset.get(key, "-")), str(value)) for key, value in mine.items() if preset.get(key, "-") != value
    }
