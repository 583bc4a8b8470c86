"""The latent policy, the decoder of latent actions, and the value head (paper, sections 4 and 5)."""

import torch
from torch import Tensor, nn

from lapo_cli.core.games import NUM_ACTIONS
from lapo_cli.core.models.impala import HIDDEN, ImpalaTrunk


class Policy(nn.Module):
    """Trunk on one frame, a hidden layer, and one linear head.

    Args:
        scale: k of the trunk.
        size: pixels a side of the frame.
        out: la_dim for a latent policy, the number of actions for one that acts directly.
    """

    def __init__(self, scale: int, size: int, out: int) -> None:
        super().__init__()
        self.trunk = ImpalaTrunk(3, scale, size)
        self.hidden = nn.Linear(self.trunk.num_features, HIDDEN)
        self.head = nn.Linear(HIDDEN, out)

    def forward(self, frame: Tensor) -> Tensor:
        """Normalized frames (B, 3, size, size) -> (B, out)."""
        out: Tensor = self.head(self.hidden(self.trunk(frame)).relu())
        return out


class Decoder(nn.Sequential):
    """MLP (192, 128, 64) from a latent action (B, la_dim) to action logits (B, 15)."""

    def __init__(self, la_dim: int) -> None:
        super().__init__(
            nn.Linear(la_dim, 192),
            nn.ReLU(),
            nn.Linear(192, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, NUM_ACTIONS),
        )


def value_head() -> nn.Linear:
    """Linear (256 -> 1) with the orthogonal initialization of gain sqrt(2) that PPO uses."""
    head = nn.Linear(HIDDEN, 1)
    nn.init.orthogonal_(head.weight, 2**0.5)
    nn.init.zeros_(head.bias)
    return head


def zeroed(head: nn.Linear) -> nn.Linear:
    """The same head with weights and biases zero: the action head of the RL branch starts as no opinion."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    return head
