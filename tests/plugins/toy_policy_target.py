"""A policy target: the direction of the latent action, by cosine distance."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lapo_cli.core.config import POLICY_TARGETS, PolicyTargetConfig
from lapo_cli.core.models.policy_targets.base import PolicyTarget
from lapo_cli.core.models.quantizers.base import Quantizer


class Direction(PolicyTarget):
    """The direction of z; the policy does not predict its length."""

    def loss(self, predicted: Tensor, z: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(predicted, z, dim=1)).mean()

    def latent_action(self, predicted: Tensor) -> Tensor:
        return F.normalize(predicted, dim=1) * predicted.shape[1] ** 0.5


class DirectionConfig(PolicyTargetConfig):
    """Its section of the configuration."""

    kind: Literal["direction"] = Field("direction", description="What the latent policy predicts.")

    def build(self, quantizer: Quantizer) -> Direction:
        return Direction(num_outputs=quantizer.la_dim, la_dim=quantizer.la_dim)


POLICY_TARGETS.register(DirectionConfig)
