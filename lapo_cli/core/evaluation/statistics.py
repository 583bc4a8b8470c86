"""Statistics of returns: pure functions of arrays.

Over several games they are those of rliable (Agarwal et al., 2021, "Deep reinforcement learning at the edge of the
statistical precipice"), where a run is one game and training seed and its score the mean normalized return. Intervals
are from the stratified bootstrap: games are fixed, training seeds are drawn anew within each game, and, beyond rliable,
episodes within each training seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_COUNTS = 4_000_000  # held at once, of 8 bytes each


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_return(returns: Sequence[NDArray[np.float64]]) -> Estimate:
    """Mean over training seeds of the mean return, with a two-level percentile bootstrap interval.

    A resample draws training seeds with replacement and then, within each, episodes. With one training seed this is
    the ordinary bootstrap over episodes and does not cover the variation between trainings.

    Args:
        returns: one array (E,) of episodic returns per training seed.
    """
    return estimate(mean_score, {"": returns})


def mean_of_evaluations(
    evaluations: Sequence[tuple[float, float, int]], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Mean and 95 % interval of a return that was evaluated for each of S training seeds, of which moments are known.

    The mean of an evaluation has the standard error of its episodes; seeds are resampled. One training seed gives the
    interval of its episodes alone.

    Args:
        evaluations: mean return, standard deviation of single returns, and episodes of each training seed.
    """
    means, deviations, episodes = np.array(evaluations, float).T
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(means), size=(resamples, len(means)))
    noise: NDArray[np.float64] = rng.normal(size=drawn.shape) * (deviations / np.sqrt(episodes))[drawn]
    low, high = np.percentile((means[drawn] + noise).mean(1), [2.5, 97.5])
    return Estimate(float(means.mean()), float(low), float(high))


def _bootstrap_means(array: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(resamples,) means of E draws with replacement."""
    values, counts = np.unique(array, return_counts=True)
    # Draws from few distinct values are counts of a multinomial: the same resampling, in less memory.
    block = max(1, _COUNTS // len(values))
    sizes = [min(block, _RESAMPLES - done) for done in range(0, _RESAMPLES, block)]
    means = [rng.multinomial(len(array), counts / len(array), size=size) @ values / len(array) for size in sizes]
    return np.concatenate(means)


Returns = Mapping[str, Sequence[NDArray[np.float64]]]
"""Game -> for each training seed its normalized episodic returns (E,)."""

Scores = Mapping[str, NDArray[np.float64]]
"""Game -> scores (seeds, R): one column of points, or R resamples of them."""


def scores(returns: Returns) -> dict[str, NDArray[np.float64]]:
    """The score of every run: game -> (seeds, 1)."""
    return {game: np.array([[array.mean()] for array in seeds]) for game, seeds in returns.items()}


def resampled_scores(returns: Returns, *, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Stratified bootstrap: game -> (seeds, 2000) scores of resampled seeds with resampled episodes."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, NDArray[np.float64]] = {}
    for game, seeds in returns.items():
        picks = rng.integers(len(seeds), size=(len(seeds), _RESAMPLES))
        # A training seed that is drawn twice has its episodes resampled twice, so every draw has resamples of its own.
        rows = [np.stack([_bootstrap_means(a, rng) for a in seeds])[pick, np.arange(_RESAMPLES)] for pick in picks]
        drawn[game] = np.stack(rows)
    return drawn


def mean_score(of: Scores) -> NDArray[np.float64]:
    """(R,) mean over games of the mean over seeds."""
    return np.mean([runs.mean(0) for runs in of.values()], axis=0)  # type: ignore[no-any-return]


def median_score(of: Scores) -> NDArray[np.float64]:
    """(R,) median over games of the mean over seeds."""
    return np.median([runs.mean(0) for runs in of.values()], axis=0)  # type: ignore[no-any-return]


def interquartile_mean(of: Scores) -> NDArray[np.float64]:
    """(R,) mean of the middle half of all runs; int(n / 4) of them are cut on either side."""
    runs = np.sort(np.concatenate(list(of.values())), axis=0)
    cut = len(runs) // 4
    return runs[cut : len(runs) - cut].mean(0)  # type: ignore[no-any-return]


def probability_of_improvement(of: Scores, over: Scores) -> NDArray[np.float64]:
    """(R,) how likely a run is better than one of ``over`` on the same game, a tie counting half; mean over games."""
    wins = []
    for game, runs in of.items():
        x, y = runs[:, None], over[game][None]
        wins.append(((x > y) + 0.5 * (x == y)).mean((0, 1)))
    return np.mean(wins, axis=0)  # type: ignore[no-any-return]


def performance_profile(of: Scores, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(thresholds, R) share of runs with a score above each threshold."""
    runs = np.concatenate(list(of.values()))
    return (runs > thresholds[:, None, None]).mean(1)  # type: ignore[no-any-return]


def estimate(statistic: Callable[..., NDArray[np.float64]], *returns: Returns) -> Estimate:
    """A statistic of the scores of one or two policies, with its 95 % interval by the stratified bootstrap."""
    point = statistic(*(scores(of) for of in returns))
    draws = statistic(*(resampled_scores(of, seed=number) for number, of in enumerate(returns)))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(point[0]), float(low), float(high))
