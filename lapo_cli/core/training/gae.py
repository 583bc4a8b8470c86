"""Generalized advantage estimation (Schulman et al., 2016)."""

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, first: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a rollout.

    Args:
        rewards: (T, N); rewards[t] is what action t earned.
        values: (T + 1, N); the last row bootstraps.
        first: (T + 1, N) bool; whether observation t begins an episode, so that nothing flows back across it.
        gamma: discount.
        lam: lambda.

    Returns:
        advantages (T, N) and returns (T, N) = advantages + values[:-1].
    """
    continues = (~first[1:]).to(values.dtype)
    deltas = rewards + gamma * values[1:] * continues - values[:-1]
    advantages = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        running = deltas[t] + gamma * lam * continues[t] * running
        advantages[t] = running
    return advantages, advantages + values[:-1]
