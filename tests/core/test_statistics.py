"""Intervals that cover, are the same every time, and do not break on constants."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec
from lapo_cli.core.envs.procgen import GAMES
from lapo_cli.core.evaluation import statistics
from lapo_cli.core.evaluation.statistics import (
    estimate,
    interquartile_mean,
    mean_of_evaluations,
    mean_return,
    mean_score,
    median_score,
    performance_profile,
    probability_of_improvement,
    scores,
)
from lapo_cli.core.evaluation.summary import ALL_GAMES, Row, Summary, share_of, with_mean_of_games


def test_the_interval_covers_the_true_mean_at_its_confidence_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        estimate = mean_return([rng.exponential(3.0, 64)])
        covered += estimate.low <= 3.0 <= estimate.high
    assert 175 <= covered <= 199  # 95 %, a little less for so skewed returns


def test_returns_are_normalized_only_between_two_references_that_differ() -> None:
    assert EnvSpec("dots", 3, random_return=2.0, expert_return=6.0).normalize(4.0) == 0.5
    assert EnvSpec("dots", 3, random_return=2.0).normalize(4.0) is None
    assert EnvSpec("dots", 3, random_return=2.0, expert_return=2.0).normalize(4.0) is None


def test_the_interval_of_one_seed_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    returns = rng.normal(5.0, 2.0, 400)
    estimate = mean_return([returns])
    assert estimate.mean == pytest.approx(returns.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * returns.std() / 20, rel=0.1)


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    noise = [rng.normal(0, 1, 100) for _ in range(3)]
    alike, apart = mean_return(noise), mean_return([n + shift for n, shift in zip(noise, (0, 5, 10), strict=True)])
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


def test_episodes_are_resampled_for_every_draw_of_a_seed() -> None:
    # Three seeds of the same distribution: the mean of 3 * 400 episodes has this standard error, hardly more.
    rng = np.random.default_rng(3)
    base = rng.normal(0, 2, 400)
    estimate = mean_return([rng.permutation(base) for _ in range(3)])
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * base.std() / np.sqrt(1200), rel=0.1)


def test_drawing_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    returns = [np.random.default_rng(seed).normal(0, 1, 150) for seed in range(2)]
    at_once = mean_return(returns)
    monkeypatch.setattr(statistics, "_COUNTS", 150 * 300)
    in_blocks = mean_return(returns)
    assert (in_blocks.low, in_blocks.high) == pytest.approx((at_once.low, at_once.high), rel=1e-12)


def test_the_resampling_is_always_the_same() -> None:
    returns = [np.random.default_rng(4).integers(0, 10, 50).astype(float) for _ in range(2)]
    np.random.seed(1)
    one = mean_return(returns)
    np.random.seed(2)
    assert mean_return(returns) == one


@pytest.mark.parametrize("returns", [[[3.0] * 5], [[3.0]], [[3.0], [3.0, 3.0]]])
def test_constant_returns_have_an_interval_of_no_width(returns: list[list[float]]) -> None:
    estimate = mean_return([np.array(r) for r in returns])
    assert (estimate.mean, estimate.low, estimate.high) == (3.0, 3.0, 3.0)


def test_a_training_seed_counts_the_same_however_many_episodes_it_has() -> None:
    assert mean_return([np.full(10, 1.0), np.full(1000, 2.0)]).mean == pytest.approx(1.5)


def test_the_interval_of_a_curve_covers_its_episodes_and_its_seeds() -> None:
    one = mean_of_evaluations([(5.0, 2.0, 64)])
    assert one.mean == 5.0
    assert one.high - one.low == pytest.approx(2 * 1.96 * 2.0 / 8, rel=0.15)
    three = mean_of_evaluations([(0.0, 0.1, 64), (10.0, 0.1, 64), (5.0, 0.1, 64)])
    assert three.mean == 5.0
    assert three.high - three.low > 5


def test_random_and_expert_returns_normalize_to_0_and_1() -> None:
    for game in GAMES:
        reference = ENVIRONMENTS.get(game)
        assert reference.random_return is not None
        assert reference.expert_return is not None
        assert reference.normalize(reference.random_return) == pytest.approx(0.0)
        assert reference.normalize(reference.expert_return) == pytest.approx(1.0)


def _row(game: str, method: str, normalized: float, share: float | None = None) -> Row:
    return Row(game, method, None, None, 3.0, 2.0, 4.0, 10, 1, normalized, share)


def test_the_mean_of_games_takes_policies_that_all_games_have() -> None:
    rows = [_row("maze", "a", 0.5), _row("maze", "b", 0.1)]
    assert with_mean_of_games(rows) == rows
    rows.append(_row("bigfish", "a", 0.2))
    means = with_mean_of_games(rows)[len(rows) :]
    assert [(row.game, row.method) for row in means] == [(ALL_GAMES, "a")]
    assert means[0].normalized == pytest.approx(0.35)


def test_in_the_mean_of_games_a_game_counts_1_at_most() -> None:
    rows = [_row("maze", "a", 100.0, 3.0), _row("bigfish", "a", -0.2, 0.5)]
    mean = with_mean_of_games(rows)[-1]
    assert mean.normalized == pytest.approx(0.4)
    assert mean.share == pytest.approx(0.75)
    assert with_mean_of_games([replace(rows[0], seeds=3), rows[1]])[-1].seeds == 1
    assert with_mean_of_games([rows[0], replace(rows[1], share=None)])[-1].share is None


def test_shares_of_the_demonstrations_are_0_for_random_play_and_1_for_the_demonstrations() -> None:
    assert [share_of(mean, 4.0, 9.0) for mean in (4.0, 9.0, 5.0)] == [0.0, 1.0, pytest.approx(0.2)]
    assert share_of(5.0, 4.0, None) is None
    assert share_of(5.0, 9.0, 4.0) is None  # Demonstrations that are no better than random play.
    rows = [_row("maze", "a", 0.5, 0.2), _row("maze", "b", 0.1)]
    assert [cells["of demonstrations"] for cells in Summary(rows, {}, [], [], Path()).cells()] == ["0.20", "-"]
    assert "of demonstrations" not in Summary(rows[1:], {}, [], [], Path()).cells()[0]


def _runs(seed: int, shift: float = 0.0) -> dict[str, list[NDArray[np.float64]]]:
    rng = np.random.default_rng(seed)
    return {game: [rng.normal(i + shift, 1, 32) for _ in range(3)] for i, game in enumerate("abcdef")}


def test_statistics_over_games_are_those_of_plain_formulas() -> None:
    of = scores(_runs(0))
    flat = np.sort(np.concatenate([runs[:, 0] for runs in of.values()]))
    means = [runs.mean() for runs in of.values()]
    assert mean_score(of)[0] == pytest.approx(flat.mean())
    assert median_score(of)[0] == pytest.approx(np.median(means))
    assert interquartile_mean(of)[0] == pytest.approx(flat[4:14].mean())  # 18 runs: int(18 / 4) are cut on either side
    over = scores(_runs(1, shift=0.5))
    wins = [np.mean([[x > y for x in of[game][:, 0]] for y in over[game][:, 0]]) for game in of]
    assert probability_of_improvement(of, over)[0] == pytest.approx(np.mean(wins))
    assert probability_of_improvement(of, of)[0] == pytest.approx(0.5)
    profile = performance_profile(of, np.array([-100.0, 2.0, 100.0]))[:, 0]
    assert profile.tolist() == [1.0, pytest.approx((flat > 2.0).mean()), 0.0]


def test_games_are_fixed_in_the_bootstrap_and_seeds_and_episodes_are_not() -> None:
    # Games differ by far more than seeds: an interval that resampled games would be wide.
    found = estimate(mean_score, _runs(2))
    assert found.low < found.mean < found.high
    assert found.high - found.low < 0.5
    apart = {"a": [np.full(8, 0.0), np.full(8, 1.0)], "b": [np.full(8, 0.0), np.full(8, 1.0)]}
    wide = estimate(mean_score, apart)
    assert (wide.low, wide.high) == (0.0, 1.0)
    one_seed = estimate(mean_score, {"a": [np.array([0.0, 1.0] * 8)]})
    assert 0 < one_seed.low < 0.5 < one_seed.high < 1


def test_improvement_is_certain_where_every_run_is_better() -> None:
    better, worse = _runs(3, shift=50.0), _runs(3)
    found = estimate(probability_of_improvement, better, worse)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_statistics_over_games_are_those_of_rliable() -> None:
    metrics = pytest.importorskip("rliable.metrics", reason="rliable is not installed", exc_type=ImportError)
    of, over = scores(_runs(4)), scores(_runs(5))
    one, other = (np.stack([runs[:, 0] for runs in found.values()], axis=1) for found in (of, over))
    assert mean_score(of)[0] == pytest.approx(metrics.aggregate_mean(one))
    assert median_score(of)[0] == pytest.approx(metrics.aggregate_median(one))
    assert interquartile_mean(of)[0] == pytest.approx(metrics.aggregate_iqm(one))
    assert probability_of_improvement(of, over)[0] == pytest.approx(metrics.probability_of_improvement(one, other))
    library = pytest.importorskip("rliable.library", reason="rliable cannot be imported", exc_type=ImportError)
    thresholds = np.linspace(-3, 8, 23)
    profile = performance_profile(of, thresholds)[:, 0]
    assert profile == pytest.approx(library.score_distributions(one, thresholds))
