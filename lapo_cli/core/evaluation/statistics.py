"""Statistics of returns: pure functions of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_return(returns: Sequence[NDArray[np.float64]], *, seed: int = 0) -> Estimate:
    """Mean over training seeds of the mean return, with a two-level percentile bootstrap interval.

    A resample draws training seeds with replacement and then, within each, episodes. With one training seed this is
    the ordinary bootstrap over episodes and does not cover the variation between trainings.

    Args:
        returns: one array (E,) of episodic returns per training seed.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    # A training seed that is drawn twice has its episodes resampled twice, so every draw has resamples of its own.
    draws = []
    for drawn in rng.integers(len(returns), size=(len(returns), _RESAMPLES)):
        inner = np.stack([_bootstrap_means(array, rng) for array in returns])  # (seeds, resamples)
        draws.append(inner[drawn, np.arange(_RESAMPLES)])
    means = np.mean(draws, axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(np.mean([array.mean() for array in returns])), float(low), float(high))


def _bootstrap_means(array: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(resamples,) means of E draws with replacement."""
    values, counts = np.unique(array, return_counts=True)
    # Draws from few distinct values are counts of a multinomial: the same resampling, in less memory.
    draws = rng.multinomial(len(array), counts / len(array), size=_RESAMPLES)
    means: NDArray[np.float64] = draws @ values / len(array)
    return means
