"""Playing a policy to measure it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.envs.procgen import ProcgenVecEnv
from lapo_cli.core.games import NUM_ACTIONS
from lapo_cli.core.progress import Progress

Act = Callable[[Tensor], Tensor]
"""Frames (B, 64, 64, 3) uint8 on the device to action logits (B, 15); actions are sampled from their softmax."""


@dataclass(frozen=True)
class Played:
    """Episodes of one policy, in the order of their environments.

    Attributes:
        returns: (E,) float64, undiscounted and unscaled.
        lengths: (E,) int64, in environment steps.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]


def uniform(frames: Tensor) -> Tensor:
    """The random policy: equal logits for every action."""
    return torch.zeros(len(frames), NUM_ACTIONS, device=frames.device)


def play(
    act: Act,
    game: str,
    *,
    episodes: int,
    num_envs: int,
    seed: int,
    device: torch.device,
    progress: Progress,
    title: str,
) -> Played:
    """Play exactly ``episodes`` episodes.

    Each environment is given its number of episodes beforehand and every episode that is started is counted. Taking
    the first ones to end instead would favour short episodes.

    Args:
        num_envs: most environments at once.
        seed: of levels and of action sampling.
    """
    num_envs = min(num_envs, episodes)
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    env = ProcgenVecEnv(game, num_envs, seed)
    generator = torch.Generator().manual_seed(seed)
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    lengths: list[list[int]] = [[] for _ in range(num_envs)]
    total, steps = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    busy = np.arange(num_envs)
    _, obs, _ = env.observe()
    with progress.task(title, episodes, "episode") as task:
        while len(busy):
            frames = torch.from_numpy(obs[busy]).to(device)
            chances = act(frames).float().softmax(1).cpu()
            actions = np.zeros(num_envs, np.int64)
            actions[busy] = torch.multinomial(chances, 1, generator=generator)[:, 0].numpy()
            env.act(actions)
            reward, obs, first = env.observe()
            total[busy] += reward[busy]
            steps[busy] += 1
            for i in busy[first[busy]]:
                returns[i].append(float(total[i]))
                lengths[i].append(int(steps[i]))
                total[i] = steps[i] = 0
            played = np.array([len(r) for r in returns])
            busy = np.flatnonzero(played < quota)
            task.update(int(played.sum()))
    env.close()
    return Played(np.concatenate(returns), np.concatenate(lengths))
