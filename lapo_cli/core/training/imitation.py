"""The loss of imitation, by latent actions or true ones: what the demonstrator does now, and next.

One action says little about the plan behind it; the next ones show where it leads, so that a policy's features are
learnt in fewer updates. The policy acts by the present action alone: the heads for the next ones serve its training.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lapo_cli.core.compute import Compute
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.impala import HIDDEN
from lapo_cli.core.models.policy import Policy

_AHEAD_WEIGHT = 0.5  # of the mean over the next frames, beside the present one


class Imitation(nn.Module):
    """A policy, and heads on its hidden layer that predict the targets of the next frames.

    Args:
        policy: is moved to the device.
        windows: the frames that have targets, (W,) ascending. No episode's first and last frame are among them, so
            that those without a gap between them are of one episode.
        targets: theirs, (W, D) float16.
        loss: of predictions (M, outputs) for targets (M, D), both float32: a mean over M.
        lookahead: how many next frames; 0 for the present one alone, as in the paper.
        compute: device and precision.
    """

    def __init__(
        self,
        policy: Policy,
        windows: NDArray[np.int64],
        targets: NDArray[np.float16],
        loss: Callable[[Tensor, Tensor], Tensor],
        lookahead: int,
        compute: Compute,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.ahead = nn.Linear(HIDDEN, lookahead * policy.head.out_features) if lookahead else None
        if self.ahead is not None:  # If large at first, they dominate the hidden layer's gradients.
            nn.init.orthogonal_(self.ahead.weight, 0.01)
            nn.init.zeros_(self.ahead.bias)
        self._windows, self._targets, self._loss, self._compute = windows, targets, loss, compute
        self._offsets = np.arange(1, lookahead + 1)
        compute.place(self)

    def forward(self, frames: Tensor, centres: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is to be minimized: the present frames' loss and half the mean of the next ones'; the former, to log.

        Args:
            frames: the present ones, (B, 1, H, W, 3) uint8.
            centres: where they are, (B,); among ``windows``.
        """
        hidden, predicted = self._infer(frames)
        rows = np.searchsorted(self._windows, centres)
        loss = self._loss(predicted, self._targets_at(rows))
        total = loss if self.ahead is None else loss + self._of_next(self.ahead(hidden), rows)
        return total, {"losses/imitation": loss}

    def predict(self, frames: Tensor) -> Tensor:
        """What the policy's head gives (B, outputs) float32 for frames (B, 1, H, W, 3) uint8."""
        return self._infer(frames)[1]

    def _infer(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        with self._compute.autocast():
            hidden = self.policy.embed(normalize(frames[:, 0], self.policy.size))
            predicted = self.policy.head(hidden)
        return hidden.float(), predicted.float()

    def _of_next(self, predicted: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Half the mean loss over the next frames; those after the episode's end, without targets, count as zero."""
        following = rows[:, None] + self._offsets
        last = len(self._windows) - 1
        gap = self._windows[np.minimum(following, last)] - self._windows[rows, None]
        there = (following <= last) & (gap == self._offsets)
        if not there.any():
            return predicted.sum() * 0.0  # Each of several processes needs a gradient.
        chosen = predicted.unflatten(1, (*there.shape[1:], -1))[torch.from_numpy(there).to(predicted.device)]
        # A mean over all of them, not over those that are there, so that several processes average to one's.
        return _AHEAD_WEIGHT * float(there.mean()) * self._loss(chosen, self._targets_at(following[there]))

    def _targets_at(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._targets[rows]).to(self._compute.device).float()
