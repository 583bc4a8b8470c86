"""Proximal policy optimization (Schulman et al., 2017) on cached encodings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical

from lapo_cli.core.config import PPOConfig, ReinforcementConfig
from lapo_cli.core.envs.base import EnvSpec
from lapo_cli.core.training.agents import Agent, ParameterGroup
from lapo_cli.core.training.gae import gae


@dataclass
class Rollout:
    """T steps of N environments.

    Attributes:
        encoded: what the agent's ``encode`` gave, each (T, N, ...).
        actions: (T, N) int64.
        logprobs: (T, N) float32, of the actions when they were taken.
        values: (T + 1, N) float32; the last row bootstraps.
        rewards: (T, N) float32, normalized.
        first: (T + 1, N) bool, whether frame t begins an episode.
        frames: (T + 1, N, H, W, 3) uint8, or None where they were not requested.
        returns: of the episodes that ended in this rollout, as the game counts them.
        lengths: steps of those episodes.
        all_ended: whether every environment has ended an episode so far; until then short ones are over-represented.
    """

    encoded: tuple[Tensor, ...]
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    rewards: Tensor
    first: Tensor
    frames: NDArray[np.uint8] | None
    returns: list[float]
    lengths: list[int]
    all_ended: bool = True


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return, and clips them to +-10."""

    def __init__(self, num_envs: int, gamma: float) -> None:
        self._gamma = gamma
        self._returns = np.zeros(num_envs)
        self._mean, self._variance, self._count = 0.0, 1.0, 1e-4

    def __call__(self, rewards: NDArray[np.float32], ended: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Rewards (N,) and whether they ended an episode (N,) -> normalized rewards (N,)."""
        self._returns = self._returns * self._gamma + rewards
        mean, variance, count = self._returns.mean(), self._returns.var(), len(rewards)
        delta, total = mean - self._mean, self._count + count
        self._variance = (
            self._variance * self._count + variance * count + delta**2 * self._count * count / total
        ) / total
        self._mean += delta * count / total
        self._count = total
        self._returns[ended] = 0.0
        scaled: NDArray[np.float32] = (rewards / np.sqrt(self._variance + 1e-8)).clip(-10, 10).astype(np.float32)
        return scaled

    def start_episodes(self) -> None:
        """Forget the rewards of the present episodes, which will not be continued."""
        self._returns[:] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "returns": torch.from_numpy(self._returns),
            "moments": [float(self._mean), float(self._variance), float(self._count)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._returns = state["returns"].numpy().copy()
        self._mean, self._variance, self._count = state["moments"]


class PPO:
    """Acts with an agent in an environment and improves it.

    The environments step in ``env_groups`` parts: while one steps in its own threads, the network serves the next.

    Args:
        agent: the policy, on ``device``.
        groups: what of it is trained, and how fast.
        env: where it acts.
        config: length and constants.
        seed: of the levels.
        device: where the agent is.
    """

    def __init__(
        self,
        agent: Agent,
        groups: list[ParameterGroup],
        env: EnvSpec,
        config: ReinforcementConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.agent, self.config, self._device = agent, config, device
        self._ppo: PPOConfig = config.ppo
        self._width = self._ppo.num_envs // self._ppo.env_groups
        self._envs = [env.make_envs(self._width, seed + i) for i in range(self._ppo.env_groups)]
        self._groups = groups
        self.optimizer = torch.optim.Adam(
            [{"params": group.parameters, "lr": group.rate(0, config.steps)} for group in self._groups], fused=True
        )
        if self._ppo.compile:
            agent.compile()
        self._parameters = [p for group in self._groups for p in group.parameters]
        self._scaler = RewardScaler(self._ppo.num_envs, self._ppo.gamma)
        self._episode = np.zeros((2, self._ppo.num_envs))  # return and length so far
        self._ended = np.zeros(self._ppo.num_envs, np.bool_)
        self.env_steps = 0

    def collect(self, *, keep_frames: bool) -> Rollout:
        """Act for ``num_steps`` steps of every environment, computing each encoding once."""
        steps, num_envs = self._ppo.num_steps, self._ppo.num_envs
        encoded: list[Tensor] = []
        actions = torch.empty(steps, num_envs, dtype=torch.int64, device=self._device)
        logprobs = torch.empty(steps, num_envs, device=self._device)
        values = torch.empty(steps + 1, num_envs, device=self._device)
        rewards = np.empty((steps + 1, num_envs), np.float32)
        first = np.empty((steps + 1, num_envs), np.bool_)
        frames: NDArray[np.uint8] | None = None
        for t in range(steps + 1):
            for group, env in enumerate(self._envs):
                part = slice(group * self._width, (group + 1) * self._width)
                rewards[t, part], obs, first[t, part] = env.observe()
                if keep_frames:
                    if frames is None:
                        frames = np.empty((steps + 1, num_envs, *obs.shape[1:]), np.uint8)
                    frames[t, part] = obs
                with torch.no_grad():
                    encoding = self.agent.encode(torch.from_numpy(obs).to(self._device))
                    logits, values[t, part] = self.agent(*encoding)
                    if t == steps:
                        continue
                    policy = Categorical(logits=logits, validate_args=False)
                    action = policy.sample()
                    actions[t, part], logprobs[t, part] = action, policy.log_prob(action)
                if not encoded:
                    encoded = [e.new_empty((steps, num_envs, *e.shape[1:])) for e in encoding]
                for store, e in zip(encoded, encoding, strict=True):
                    store[t, part] = e
                # Last, because the frames are the environment's own memory, which it may write to from here on.
                env.act(action.cpu().numpy())
        # An observation carries the reward of the action before it, so this rollout's rewards start at row 1.
        returns, lengths = self._count_episodes(rewards[1:], first[1:])
        scaled = np.stack([self._scaler(r, f) for r, f in zip(rewards[1:], first[1:], strict=True)])
        self.env_steps += steps * num_envs
        return Rollout(
            tuple(encoded),
            actions,
            logprobs,
            values,
            torch.from_numpy(scaled).to(self._device),
            torch.from_numpy(first).to(self._device),
            frames,
            returns,
            lengths,
            bool(self._ended.all()),
        )

    def _count_episodes(self, rewards: NDArray[np.float32], ended: NDArray[np.bool_]) -> tuple[list[float], list[int]]:
        returns: list[float] = []
        lengths: list[int] = []
        for reward, end in zip(rewards, ended, strict=True):
            self._episode[0] += reward
            self._episode[1] += 1
            returns += self._episode[0, end].tolist()
            lengths += self._episode[1, end].astype(int).tolist()
            self._episode[:, end] = 0
            self._ended |= end
        return returns, lengths

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Improve the agent on a rollout; returns scalars to log, means over the last epoch's minibatches."""
        ppo = self._ppo
        for group, settings in zip(self._groups, self.optimizer.param_groups, strict=True):
            settings["lr"] = group.rate(self.env_steps - rollout.actions.numel(), self.config.steps)
        advantages, returns = gae(rollout.rewards, rollout.values, rollout.first, gamma=ppo.gamma, lam=ppo.gae_lambda)
        flat = [x.flatten(0, 1) for x in (rollout.actions, rollout.logprobs, rollout.values[:-1], advantages, returns)]
        encoded = [e.flatten(0, 1) for e in rollout.encoded]
        size = rollout.actions.numel() // ppo.minibatches
        logged: list[dict[str, Tensor]] = []
        for epoch in range(ppo.epochs):
            order = torch.randperm(rollout.actions.numel())[: size * ppo.minibatches].to(self._device)
            for index in order.split(size):
                actions, logprobs, values, advantage, target = (x[index] for x in flat)
                logits, new_values = self.agent(*(e[index] for e in encoded))
                loss, metrics = ppo_loss(logits, new_values, actions, logprobs, values, advantage, target, ppo)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._parameters, ppo.grad_norm)
                self.optimizer.step()
                if epoch == ppo.epochs - 1:
                    logged.append(metrics)
        means = {name: torch.stack([m[name] for m in logged]).mean() for name in logged[0]}
        residual_variance = (returns - rollout.values[:-1]).var() / returns.var().clamp(min=1e-8)
        return {**means, "losses/explained_variance": 1 - residual_variance}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs, with the environments' states where they can be saved."""
        return {
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "episode": torch.from_numpy(self._episode),
            "ended": torch.from_numpy(self._ended),
            "env_steps": self.env_steps,
            "envs": [env.get_state() for env in self._envs if env.saves_state],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; environments that cannot be saved start new episodes."""
        self.agent.load_state_dict(state["agent"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._episode = state["episode"].numpy().copy()
        self._ended = state["ended"].numpy().copy()
        self.env_steps = state["env_steps"]
        if not self.resumes_exactly:
            self._episode[:] = 0
            self._scaler.start_episodes()
            return
        for env, states in zip(self._envs, state["envs"], strict=True):
            env.set_state(states)

    @property
    def resumes_exactly(self) -> bool:
        """Whether a checkpoint holds the environments too."""
        return self._envs[0].saves_state

    def close(self) -> None:
        """Free the environments."""
        for env in self._envs:
            env.close()


def ppo_loss(
    logits: Tensor,
    new_values: Tensor,
    actions: Tensor,
    logprobs: Tensor,
    values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate + value_coef * clipped value loss - entropy_coef * entropy, and metrics to log.

    Advantages are normalized over the minibatch. All arguments are (B,), logits (B, num_actions).
    """
    policy = Categorical(logits=logits, validate_args=False)
    log_ratio = policy.log_prob(actions) - logprobs
    ratio = log_ratio.exp()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped_ratio = ratio.clamp(1 - config.clip, 1 + config.clip)
    policy_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
    clipped_values = values + (new_values - values).clamp(-config.clip, config.clip)
    value_loss = 0.5 * torch.max((new_values - returns).square(), (clipped_values - returns).square()).mean()
    entropy = policy.entropy().mean()
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    return loss, {
        "losses/policy_loss": policy_loss.detach(),
        "losses/value_loss": value_loss.detach(),
        "losses/entropy": entropy.detach(),
        "losses/approx_kl": (ratio - 1 - log_ratio).mean().detach(),
        "losses/clipfrac": ((ratio - 1).abs() > config.clip).float().mean(),
    }
