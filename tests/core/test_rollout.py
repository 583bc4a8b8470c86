"""Rollouts: every episode that is started is counted, and none is favoured."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec, VecEnv
from lapo_cli.core.progress import Silent
from lapo_cli.core.training.rollout import Episodes, rollout, uniform

_CPU = torch.device("cpu")


class _Lengths(VecEnv):
    """Environment i plays episodes of the lengths that are drawn for it, and returns each one's length."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._n = num_envs
        self._length = self._draw(num_envs)
        self._age = np.zeros(num_envs, int)
        self._out = (np.zeros(num_envs, np.float32), np.ones(num_envs, bool))

    def _draw(self, count: int) -> NDArray[np.int64]:
        return np.where(self._rng.random(count) < 0.5, 1, 50)

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        reward, first = self._out
        return reward, np.zeros((self._n, 64, 64, 3), np.uint8), first

    def act(self, actions: NDArray[np.int64]) -> None:
        self._age += 1
        ended = self._age == self._length
        self._out = (np.ones(self._n, np.float32), ended)
        self._age[ended] = 0
        self._length = np.where(ended, self._draw(self._n), self._length)

    def close(self) -> None:
        pass


_LENGTHS = EnvSpec("lengths", 15, make=_Lengths)


def _rollout(episodes: int, num_envs: int, seed: int = 0, env: EnvSpec = _LENGTHS) -> Episodes:
    return rollout(
        uniform(15),
        env,
        episodes=episodes,
        num_envs=num_envs,
        max_episode_steps=1000,
        seed=seed,
        device=_CPU,
        progress=Silent(),
        title="playing",
    )


def test_short_episodes_are_not_favoured() -> None:
    played = _rollout(2000, 100)
    assert len(played.returns) == 2000
    assert played.returns.tolist() == played.lengths.tolist()
    # Half are 1 long and half 50; the first 2,000 to end would nearly all be short ones.
    assert played.returns.mean() == pytest.approx(25.5, abs=2)


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 8), (7, 3), (8, 8), (9, 4)])
def test_exactly_so_many_episodes_are_played(episodes: int, num_envs: int) -> None:
    assert len(_rollout(episodes, num_envs).returns) == episodes


def test_in_procgen_the_same_seed_gives_the_same_returns_and_another_seed_others() -> None:
    one, same, other = (_rollout(6, 4, seed, ENVIRONMENTS.get("bigfish")) for seed in (1, 1, 2))
    assert one.returns.tolist() == same.returns.tolist()
    assert one.lengths.tolist() == same.lengths.tolist()
    assert one.lengths.tolist() != other.lengths.tolist()
    assert len(one.returns) == 6
    assert (one.lengths > 0).all()


def test_actions_are_sampled_from_the_logits() -> None:
    seen: list[NDArray[np.int64]] = []

    class Watched(_Lengths):
        def act(self, actions: NDArray[np.int64]) -> None:
            seen.append(actions.copy())
            super().act(actions)

    def act(frames: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(frames), 15), -1e9)
        logits[:, [3, 9]] = torch.tensor([0.0, np.log(3.0)], dtype=torch.float32)
        return logits

    rollout(
        act,
        EnvSpec("watched", 15, make=Watched),
        episodes=500,
        num_envs=500,
        max_episode_steps=1000,
        seed=0,
        device=_CPU,
        progress=Silent(),
        title="",
    )
    assert np.isin(seen[0], [3, 9]).all()
    assert (seen[0] == 9).mean() == pytest.approx(0.75, abs=0.08)
