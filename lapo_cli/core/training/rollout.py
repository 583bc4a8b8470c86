"""Acting with a policy to evaluate it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.envs.base import EnvSpec
from lapo_cli.core.errors import BrokenEnvironmentError
from lapo_cli.core.progress import Progress
from lapo_cli.core.training.agents import Act


@dataclass(frozen=True)
class Film:
    """The beginnings of the first episodes of the first environments.

    Attributes:
        frames: (L, T, H, W, 3) uint8, of L episodes; zeros after an episode's end.
        lengths: how many of the T frames each has.
        returns: of the whole episodes, also of those that are longer than the film.
    """

    frames: NDArray[np.uint8]
    lengths: list[int]
    returns: list[float]


@dataclass(frozen=True)
class Filming:
    """What is to be filmed: so many frames, one every so many steps, of one episode on each of so many levels."""

    levels: int
    frames: int
    every: int


@dataclass(frozen=True)
class Episodes:
    """Episodes of one policy, in the order of their environments.

    Attributes:
        returns: (E,) float64, undiscounted and unscaled.
        lengths: (E,) int64, in environment steps.
        film: of the first environments, if it was requested.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    film: Film | None = None


class _Camera:
    """Keeps frames of the environments' first episodes while they are played."""

    def __init__(self, filming: Filming, frames: NDArray[np.uint8]) -> None:
        self._every = filming.every
        levels = min(filming.levels, len(frames))
        self._frames = np.zeros((levels, filming.frames, *frames.shape[1:]), np.uint8)
        self._lengths = np.zeros(levels, np.int64)

    def take(self, frames: NDArray[np.uint8], steps: NDArray[np.int64], playing_first: NDArray[np.bool_]) -> None:
        """Frames (N, H, W, 3), steps into the episode (N,), and whether that is an environment's first episode (N,)."""
        levels, most = self._frames.shape[:2]
        for i in np.flatnonzero(playing_first[:levels] & (steps[:levels] % self._every == 0)):
            if self._lengths[i] < most:
                self._frames[i, self._lengths[i]] = frames[i]
                self._lengths[i] += 1

    def film(self, returns: list[list[float]]) -> Film:
        """What was taken, cut to the longest; ``returns`` are those of every environment's episodes."""
        longest = int(self._lengths.max())
        levels = len(self._lengths)
        return Film(self._frames[:, :longest], self._lengths.tolist(), [returns[i][0] for i in range(levels)])


def uniform(num_actions: int) -> Act:
    """The random policy: equal logits for every action."""

    def act(frames: Tensor) -> Tensor:
        return torch.zeros(len(frames), num_actions, device=frames.device)

    return act


def rollout(
    act: Act,
    env: EnvSpec,
    *,
    episodes: int,
    num_envs: int,
    max_episode_steps: int,
    seed: int,
    device: torch.device,
    progress: Progress,
    title: str,
    filming: Filming | None = None,
) -> Episodes:
    """Act for exactly ``episodes`` episodes.

    Each environment is given its number of episodes beforehand and every episode that is started is counted. Taking
    the first ones to end instead would favour short episodes.

    Args:
        num_envs: most environments at once.
        max_episode_steps: an episode that is longer is taken for one that never ends.
        seed: of levels and of action sampling.
        filming: what to film; by default nothing.

    Raises:
        EnvironmentUnavailableError: nothing can act here.
        BrokenEnvironmentError: the environment fails, or an episode does not end.
    """
    num_envs = min(num_envs, episodes)
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    envs = env.make_envs(num_envs, seed)
    generator = torch.Generator().manual_seed(seed)
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    lengths: list[list[int]] = [[] for _ in range(num_envs)]
    total, steps = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    busy = np.arange(num_envs)
    try:
        _, obs, _ = envs.observe()
        camera = None if filming is None else _Camera(filming, obs)
        with progress.task(title, episodes, "episode") as task:
            while len(busy):
                if camera is not None:
                    camera.take(obs, steps, np.array([not r for r in returns]))
                frames = torch.from_numpy(obs[busy]).to(device)
                probabilities = act(frames).float().softmax(1).cpu()
                actions = np.zeros(num_envs, np.int64)
                actions[busy] = torch.multinomial(probabilities, 1, generator=generator)[:, 0].numpy()
                envs.act(actions)
                reward, obs, first = envs.observe()
                total[busy] += reward[busy]
                steps[busy] += 1
                for i in busy[first[busy]]:
                    returns[i].append(float(total[i]))
                    lengths[i].append(int(steps[i]))
                    total[i] = steps[i] = 0
                if steps.max() >= max_episode_steps:
                    raise BrokenEnvironmentError(
                        f"An episode of {env.name} did not end within {max_episode_steps:,} steps: have the "
                        "environment end it, or raise evaluation.max_episode_steps by --set."
                    )
                played = np.array([len(r) for r in returns])
                busy = np.flatnonzero(played < quota)
                task.update(int(played.sum()))
    finally:
        envs.close()
    film = None if camera is None else camera.film(returns)
    return Episodes(np.concatenate(returns), np.concatenate(lengths), film)
