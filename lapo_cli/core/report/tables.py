"""The tables of the report: policies, statistics over games, stages, and configuration."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.config_loading import flat, load_config
from lapo_cli.core.envs.base import normalized
from lapo_cli.core.errors import ConfigError
from lapo_cli.core.evaluation import statistics
from lapo_cli.core.evaluation.evaluate import RANDOM_POLICY
from lapo_cli.core.evaluation.measurements import DEMONSTRATIONS
from lapo_cli.core.evaluation.statistics import Estimate, Returns, estimate, mean_return
from lapo_cli.core.evaluation.summary import Failure, Key, Row, Summary, share_of, title_of, with_mean_of_games
from lapo_cli.core.progress import clock_time
from lapo_cli.core.report import paper
from lapo_cli.core.report.results import Policy, RunResults, SeedResults
from lapo_cli.core.training.networks import IDM, SUPERVISED_IDM
from lapo_cli.core.training.no_quantizer import NO_QUANTIZER

_SCRATCH = "scratch"
_SHARE_NOTE = (
    "Normalized: 0 is the random policy and 1 the paper's expert; of demonstrations: 0 is the random policy and 1 the "
    "demonstrations. In means of games a game counts 1 at most."
)


def pooled(seeds: Sequence[SeedResults]) -> dict[Key, list[Policy]]:
    """The policies of a game's seeds by what they have in common, in the order of tables."""
    found: dict[Key, list[Policy]] = {}
    for policy in sorted(
        (p for seed in seeds for p in seed.policies), key=lambda p: (p.order, p.method, p.labels or 0)
    ):
        found.setdefault(policy.key, []).append(policy)
    return found


def policy_rows(run: RunResults, game: str, number: int | None = None) -> list[Row]:
    """A row for every policy of a game, in the order of tables, pooled over training seeds or of seed ``number``."""
    seeds = [seed for seed in run.of(game) if number in (None, seed.seed)]
    # All seeds of a game see the same demonstrations.
    of = {key: found[: 1 if key[0] == DEMONSTRATIONS else None] for key, found in pooled(seeds).items()}
    estimates = {key: mean_return([policy.returns for policy in policies]) for key, policies in of.items()}
    means = {key: found.mean for key, found in estimates.items()}
    bounds = (means.get((RANDOM_POLICY, None, None)), means.get((DEMONSTRATIONS, None, None)))
    return [
        Row(
            game,
            *key,
            mean=means[key],
            low=estimates[key].low,
            high=estimates[key].high,
            episodes=sum(len(policy.returns) for policy in policies),
            seeds=len(policies),
            normalized=normalized(means[key], seeds[0].reference),
            share=share_of(means[key], *bounds),
            reference=run.references.get((game, *key)),
            published=paper.published(game, "expert" if key[0] == DEMONSTRATIONS else policies[0].stage, key[1]),
            stage=policies[0].stage,
        )
        for key, policies in of.items()
    ]


def summarize(run: RunResults, failures: list[Failure], folder: Path, only: str | None = None) -> Summary:
    """The table of a run's policies, as they were last evaluated, pooled over training seeds and for each by itself.

    Args:
        failures: what could not be finished, to be noted in it.
        folder: where its files will go.
        only: leave out the policies of all stages but this one.
    """
    rows = _rows(run, only)
    by_seed = {number: _rows(run, only, number) for number in sorted({seed.seed for seed in run.seeds})}
    notes = [note for seed in run.seeds for note in _health(seed)]
    notes += [_SHARE_NOTE] if any(row.share is not None for row in rows) else []
    return Summary(with_mean_of_games(rows), by_seed, notes, failures, folder)


def _rows(run: RunResults, only: str | None, number: int | None = None) -> list[Row]:
    rows = (row for game in run.games for row in policy_rows(run, game, number))
    return [row for row in rows if only in (None, row.stage) or not row.stage]


def _health(seed: SeedResults) -> Iterator[str]:
    """How good the latent actions are, and what to compare that with."""
    supervised = seed.stages.get(SUPERVISED_IDM)
    accuracy = None if supervised is None else supervised.results.get("val/accuracy")
    ceiling = "" if accuracy is None else f", a supervised model: {accuracy:.2f}"
    for variant in ("", NO_QUANTIZER):
        idm = seed.stages.get(IDM + variant)
        if idm is None or not idm.done:
            continue
        title, found = f"{seed.game}/{seed.seed}{variant}", idm.results
        if "probe/accuracy" in found:
            yield (
                f"{title} probe: reads the true action off the latent action with accuracy "
                f"{found['probe/accuracy']:.2f} (majority baseline: {found['probe/majority_baseline']:.2f}, "
                f"an untrained network's latent action: {found['probe/untrained']:.2f}{ceiling})."
            )
        if "val/world_model" in found:
            yield f"{title} world model: {_prediction_error(found)}."


def _prediction_error(found: Mapping[str, Any]) -> str:
    error = found["val/world_model"] / max(found["val/copy_last_frame"], 1e-12)
    parts = [f"its error is {error:.2f} times that of repeating the last frame"]
    if "val/world_model_changed" in found:
        changed = found["val/world_model_changed"] / max(found["val/copy_last_frame_changed"], 1e-12)
        parts.append(f"{changed:.2f} on the pixels that change")
    if "val/code_usage" in found:
        parts.append(f"{found['val/code_usage']:.0%} of the codes are used")
    return ", ".join(parts)


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

    title: str
    statistics: dict[str, Estimate]
    improvement: Estimate | None


STATISTICS = {
    "mean": statistics.mean_score,
    "median": statistics.median_score,
    "interquartile mean": statistics.interquartile_mean,
}


_Row = TypeVar("_Row", Row, StatisticsRow)


def together(of_runs: Mapping[str, Sequence[_Row]]) -> list[tuple[str, _Row]]:
    """The rows of several runs with the names of these, those of the same policy one after the other."""
    rows = [(run, row) for run, of_run in of_runs.items() for row in of_run]
    titles = list(dict.fromkeys(row.title for _, row in rows))
    return sorted(rows, key=lambda named: titles.index(named[1].title))


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
        rows.append(StatisticsRow(title_of(key), found, better))
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
