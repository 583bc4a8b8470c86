"""The latent policy, the decoder of latent actions, and the value head (paper, sections 4 and 5)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lapo_cli.core.models.impala import HIDDEN, TRUNKS
from lapo_cli.core.models.policy_targets.base import PolicyTarget


class Policy(nn.Module):
    """Trunk on one frame, a hidden layer, and one linear head.

    Args:
        scale: k of the trunk.
        size: pixels per side of the frame.
        out: what the head gives: action logits, or what a policy target asks for.
        trunk: which of :data:`TRUNKS`.
    """

    def __init__(self, scale: int, size: int, out: int, trunk: str = "impala") -> None:
        super().__init__()
        self.size = size
        self.trunk = TRUNKS[trunk](3, scale, size)
        self.hidden = nn.Linear(self.trunk.num_features, HIDDEN)
        self.head = nn.Linear(HIDDEN, out)

    def embed(self, frame: Tensor) -> Tensor:
        """Normalized frames (B, 3, size, size) -> activations of the hidden layer (B, 256)."""
        hidden: Tensor = self.hidden(self.trunk(frame)).relu()
        return hidden

    def forward(self, frame: Tensor) -> Tensor:
        """Normalized frames (B, 3, size, size) -> (B, out)."""
        out: Tensor = self.head(self.embed(frame))
        return out


class LatentPolicy(Policy):
    """A policy that gives latent actions, in whatever form it was trained to predict them.

    Args:
        scale: k of the trunk.
        size: pixels per side of the frame.
        target: what the head predicts.
        trunk: which of :data:`TRUNKS`.
    """

    def __init__(self, scale: int, size: int, target: PolicyTarget, trunk: str = "impala") -> None:
        super().__init__(scale, size, target.num_outputs, trunk)
        self.target = target

    def latent_action(self, features: Tensor) -> Tensor:
        """Features of the trunk (B, F) -> the latent actions (B, la_dim) of what is predicted."""
        return self.target.latent_action(self.head(self.hidden(features).relu()))


class Decoder(nn.Sequential):
    """MLP (192, 128, 64) from a latent action (B, la_dim) to action logits (B, num_actions)."""

    def __init__(self, la_dim: int, num_actions: int) -> None:
        super().__init__(
            nn.Linear(la_dim, 192),
            nn.ReLU(),
            nn.Linear(192, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, num_actions),
        )


DECODERS: dict[str, Callable[[int, int], nn.Module]] = {"mlp": Decoder, "linear": nn.Linear}
"""Name in the configuration -> decoder of latent actions of la_dim numbers to num_actions logits."""


def value_head() -> nn.Linear:
    """Linear (256 -> 1) with an orthogonal initialization of gain sqrt(2), as in the research code."""
    head = nn.Linear(HIDDEN, 1)
    nn.init.orthogonal_(head.weight, 2**0.5)
    nn.init.zeros_(head.bias)
    return head


def zeroed(head: nn.Linear) -> nn.Linear:
    """The given head with all its weights set to zero: the action head of the RL branch."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    return head
