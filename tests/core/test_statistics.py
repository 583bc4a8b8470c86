"""Intervals that cover, are the same every time, and do not break on constants."""

import numpy as np
import pytest

from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.envs.procgen import GAMES
from lapo_cli.core.evaluation.statistics import mean_return
from lapo_cli.core.evaluation.summary import ALL_GAMES, make_row, with_mean_of_games


def test_the_interval_covers_the_true_mean_at_its_confidence_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        estimate = mean_return([rng.exponential(3.0, 64)])
        covered += estimate.low <= 3.0 <= estimate.high
    assert 175 <= covered <= 199  # 95 %, a little less for so skewed returns


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


def test_the_seed_alone_decides_the_resampling() -> None:
    returns = [np.random.default_rng(4).integers(0, 10, 50).astype(float) for _ in range(2)]
    np.random.seed(1)
    one = mean_return(returns)
    np.random.seed(2)
    assert mean_return(returns) == one
    other = mean_return(returns, seed=1)
    assert other.mean == one.mean
    assert (other.low, other.high) != (one.low, one.high)


@pytest.mark.parametrize("returns", [[[3.0] * 5], [[3.0]], [[3.0], [3.0, 3.0]]])
def test_constant_returns_have_an_interval_of_no_width(returns: list[list[float]]) -> None:
    estimate = mean_return([np.array(r) for r in returns])
    assert (estimate.mean, estimate.low, estimate.high) == (3.0, 3.0, 3.0)


def test_a_training_seed_counts_the_same_however_many_episodes_it_has() -> None:
    assert mean_return([np.full(10, 1.0), np.full(1000, 2.0)]).mean == pytest.approx(1.5)


def test_random_and_expert_returns_normalize_to_0_and_1() -> None:
    for game in GAMES:
        reference = ENVIRONMENTS.get(game)
        assert reference.random_return is not None
        assert reference.expert_return is not None
        assert reference.normalize(reference.random_return) == pytest.approx(0.0)
        assert reference.normalize(reference.expert_return) == pytest.approx(1.0)


def test_the_mean_of_games_takes_policies_that_all_games_have() -> None:
    maze, bigfish = ENVIRONMENTS.get("maze"), ENVIRONMENTS.get("bigfish")
    rows = [make_row(maze, "a", [np.array([4.0, 5.0])]), make_row(maze, "b", [np.array([1.0, 2.0])])]
    assert with_mean_of_games(rows) == rows
    rows.append(make_row(bigfish, "a", [np.array([7.0, 9.0])]))
    means = with_mean_of_games(rows)[len(rows) :]
    assert [(row.game, row.method) for row in means] == [(ALL_GAMES, "a")]
    assert means[0].normalized == pytest.approx((rows[0].normalized + rows[2].normalized) / 2)
