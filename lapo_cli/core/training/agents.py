"""Agents as PPO sees them: an encoding that is computed once while acting, and heads that are trained on it.

What is frozen belongs into :meth:`Agent.encode`; PPO stores the encoding in the rollout and its epochs run on the
heads alone. The same PPO so serves a policy that is trained whole and one that is trained in its last layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import OnlineConfig
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.impala import HIDDEN
from lapo_cli.core.models.policy import Decoder, LatentPolicy, Policy, value_head, zeroed

Act = Callable[[Tensor], Tensor]
"""Frames (B, H, W, 3) uint8 on the device to action logits (B, num_actions); actions are sampled from their softmax."""

Rate = Callable[[int, int], float]
"""The learning rate after so many environment steps of so many."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning-rate schedule over environment steps."""

    parameters: list[nn.Parameter]
    rate: Rate


LAST_LAYERS = ("online.action_head", "online.value_head", "online.hidden")
"""The settings of their training, for :attr:`Stage.sections`."""


def _last_layers(config: OnlineConfig, action: nn.Module, value: nn.Module, hidden: nn.Module) -> list[ParameterGroup]:
    """Action head, value head and linear layer, each at its own rate (paper, appendix A)."""
    rates = ((action, config.action_head), (value, config.value_head), (hidden, config.hidden))
    return [ParameterGroup(list(layer.parameters()), schedule.at) for layer, schedule in rates]


class Agent(nn.Module, ABC):
    """A stochastic policy with a value estimate."""

    @abstractmethod
    def encode(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames (B, H, W, 3) uint8 to whatever :meth:`forward` takes; no gradient flows into it."""

    @abstractmethod
    def forward(self, *encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Encodings to action logits (B, num_actions) and values (B,), both float32."""

    @torch.no_grad()
    def act(self, frames: Tensor) -> Tensor:
        """Action logits (B, num_actions) of frames (B, H, W, 3) uint8."""
        logits: Tensor = self(*self.encode(frames))[0]
        return logits


class DirectAgent(Agent):
    """A policy that gives true actions directly, trained whole: the encoding is the frame itself.

    Args:
        scale: k of the trunk.
        size: pixels per side the network sees.
        num_actions: how many actions it chooses from.
        compute: where and how it runs.
        trunk: which of :data:`TRUNKS`.
    """

    def __init__(self, scale: int, size: int, num_actions: int, compute: Compute, trunk: str = "impala") -> None:
        super().__init__()
        self.policy = Policy(scale, size, num_actions, trunk)
        # A small first policy is close to uniform, as PPO wants it.
        nn.init.orthogonal_(self.policy.head.weight, 0.01)
        nn.init.zeros_(self.policy.head.bias)
        self.value = value_head()
        self._compute = compute

    def encode(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The frames as they are."""
        return (frames,)

    def forward(self, *encoded: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Agent.forward`."""
        (frames,) = encoded
        with self._compute.autocast():
            hidden = self.policy.embed(normalize(frames, self.policy.size))
            return self.policy.head(hidden).float(), self.value(hidden).flatten().float()

    def parameter_groups(self, rate: Rate) -> list[ParameterGroup]:
        """What PPO trains: everything, at one rate."""
        return [ParameterGroup(list(self.parameters()), rate)]


class LatentAgent(Agent):
    """The frozen latent policy with a decoder, beside a branch for reinforcement learning (paper, section 4.3).

    Logits are the mean of two branches on the same frozen convolutions: the supervised one (frozen linear layer and
    latent head, then the decoder) and the reinforcement-learning one (its own copy of the linear layer, then a head
    that starts at zero). The value head reads the latter. Without a decoder, the latter's logits stand alone.

    Args:
        latent_policy: stage 2's policy; its parameters are frozen here.
        num_actions: how many actions it chooses from.
        with_decoder: whether there is a supervised branch ("RL + SL") or not ("RL only").
        compute: where and how it runs.
    """

    def __init__(self, latent_policy: LatentPolicy, num_actions: int, *, with_decoder: bool, compute: Compute) -> None:
        super().__init__()
        self.latent_policy = latent_policy.requires_grad_(False)
        self.decoder = Decoder(latent_policy.target.la_dim, num_actions).requires_grad_(False) if with_decoder else None
        self.hidden = nn.Linear(latent_policy.hidden.in_features, HIDDEN)
        self.hidden.load_state_dict(latent_policy.hidden.state_dict())
        self.action = zeroed(nn.Linear(HIDDEN, num_actions))
        self.value = value_head()
        self._compute = compute

    @torch.no_grad()
    def encode(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Trunk features (B, F) and, with a decoder, its logits (B, num_actions): what is frozen in an update."""
        with self._compute.autocast():
            features = self.latent_policy.trunk(normalize(frames, self.latent_policy.size))
            if self.decoder is None:
                return (features,)
            z = self.latent_policy.latent_action(features)
            return features, self.decoder(z.float()).float()

    def forward(self, *encoded: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Agent.forward`."""
        with self._compute.autocast():
            hidden = self.hidden(encoded[0]).relu()
            logits, value = self.action(hidden).float(), self.value(hidden).flatten().float()
        return (logits + encoded[1]) / 2 if self.decoder is not None else logits, value

    def parameter_groups(self, config: OnlineConfig) -> list[ParameterGroup]:
        """What PPO trains, see :func:`_last_layers`."""
        return _last_layers(config, self.action, self.value, self.hidden)


class ClonedAgent(Agent):
    """A cloned policy whose trunk is frozen: PPO continues with its last layers.

    Its weights are named as those of :class:`DirectAgent`, which acts in the same way.

    Args:
        cloned: whose policy it is; its parameters are trained here.
        compute: where and how it runs.
    """

    def __init__(self, cloned: DirectAgent, compute: Compute) -> None:
        super().__init__()
        self.policy = cloned.policy
        self.policy.trunk.requires_grad_(False)
        self.value = value_head()
        self._compute = compute

    @torch.no_grad()
    def encode(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Trunk features (B, F)."""
        with self._compute.autocast():
            return (self.policy.trunk(normalize(frames, self.policy.size)),)

    def forward(self, *encoded: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Agent.forward`."""
        with self._compute.autocast():
            hidden = self.policy.hidden(encoded[0]).relu()
            return self.policy.head(hidden).float(), self.value(hidden).flatten().float()

    def parameter_groups(self, config: OnlineConfig) -> list[ParameterGroup]:
        """What PPO trains, see :func:`_last_layers`."""
        return _last_layers(config, self.policy.head, self.value, self.policy.hidden)


class OfflineAgent(nn.Module):
    """decoder(latent policy(o_t)): what offline decoding acts with."""

    def __init__(self, latent_policy: LatentPolicy, decoder: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.latent_policy, self.decoder = latent_policy, decoder
        self._compute = compute

    @torch.no_grad()
    def act(self, frames: Tensor) -> Tensor:
        """Action logits (B, num_actions) of frames (B, H, W, 3) uint8."""
        policy = self.latent_policy
        with self._compute.autocast():
            z = policy.latent_action(policy.trunk(normalize(frames, policy.size)))
            logits: Tensor = self.decoder(z.float()).float()
            return logits
