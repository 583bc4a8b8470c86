"""PPO as it is usually written: the whole network, frozen parts and all, is run for every minibatch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lapo_cli.core.config import PPOConfig
from tests.reference.plain_models import PlainEncoder, plain_normalize


def plain_gae(
    rewards: list[float], values: list[float], first: list[bool], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """One environment: the definition, a sum over all later steps of the episode. ``values``, ``first``: T + 1."""
    steps = len(rewards)
    deltas = []
    for t in range(steps):
        after = 0.0 if first[t + 1] else values[t + 1]
        deltas.append(rewards[t] + gamma * after - values[t])
    advantages = []
    for t in range(steps):
        total, weight = 0.0, 1.0
        for later in range(t, steps):
            total += weight * deltas[later]
            if first[later + 1]:
                break
            weight *= gamma * lam
        advantages.append(total)
    return advantages, [a + v for a, v in zip(advantages, values, strict=False)]


class PlainLatentAgent(nn.Module):
    """Section 5: two branches on the same convolutions; every call computes everything from the frames."""

    def __init__(self, la_dim: int, k: int, size: int) -> None:
        super().__init__()
        self.latent_policy = PlainEncoder(3, k, size, la_dim)
        self.decoder = nn.Sequential(
            nn.Linear(la_dim, 192), nn.ReLU(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
            nn.Linear(64, 15),
        )  # fmt: skip
        self.hidden = nn.Linear(32 * k * (size // 8) ** 2, 256)
        self.action = nn.Linear(256, 15)
        self.value = nn.Linear(256, 1)
        self.size = size

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        features = self.latent_policy.trunk(plain_normalize(frames, self.size))
        latent = self.latent_policy.head(torch.relu(self.latent_policy.hidden(features)))
        supervised = self.decoder(latent)
        hidden = torch.relu(self.hidden(features))
        return (self.action(hidden) + supervised) / 2, self.value(hidden)[:, 0]


@dataclass
class PlainRollout:
    """Frames (T + 1, N, 64, 64, 3) uint8; actions, logprobs, rewards (T, N); values, first (T + 1, N)."""

    frames: Tensor
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    rewards: Tensor
    first: Tensor


def plain_ppo_update(
    agent: nn.Module,
    optimizer: torch.optim.Optimizer,
    rollout: PlainRollout,
    config: PPOConfig,
    orders: list[Tensor],
) -> None:
    """One update; ``orders`` holds a permutation of the rollout's steps for every epoch."""
    steps, envs = rollout.actions.shape
    advantages, returns = torch.zeros(steps, envs), torch.zeros(steps, envs)
    for n in range(envs):
        a, r = plain_gae(
            rollout.rewards[:, n].tolist(),
            rollout.values[:, n].tolist(),
            rollout.first[:, n].tolist(),
            config.gamma,
            config.gae_lambda,
        )
        advantages[:, n], returns[:, n] = torch.tensor(a), torch.tensor(r)
    frames = rollout.frames[:-1].flatten(0, 1)
    actions, old, before = rollout.actions.flatten(), rollout.logprobs.flatten(), rollout.values[:-1].flatten()
    advantages, returns = advantages.flatten(), returns.flatten()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    size = len(actions) // config.minibatches
    for order in orders:
        for number in range(config.minibatches):
            index = order[number * size : (number + 1) * size]
            logits, values = agent(frames[index])
            chances = torch.log_softmax(logits, 1)
            ratio = torch.exp(chances[torch.arange(size), actions[index]] - old[index])
            a = advantages[index]
            a = (a - a.mean()) / (a.std() + 1e-8)
            surrogate = torch.min(a * ratio, a * torch.clip(ratio, 1 - config.clip, 1 + config.clip)).mean()
            near = before[index] + torch.clip(values - before[index], -config.clip, config.clip)
            errors = torch.max((values - returns[index]) ** 2, (near - returns[index]) ** 2)
            entropy = -(chances.exp() * chances).sum(1).mean()
            loss = -surrogate + config.value_coef * 0.5 * errors.mean() - config.entropy_coef * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, config.grad_norm)
            optimizer.step()
