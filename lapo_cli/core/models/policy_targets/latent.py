"""The paper's target: the latent action before quantization, by mean squared error (paper, section 4.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lapo_cli.core.config import POLICY_TARGETS, PolicyTargetConfig
from lapo_cli.core.models.policy_targets.base import PolicyTarget
from lapo_cli.core.models.quantizers.base import Quantizer

_LEAST_DEVIATION = 1e-6


class LatentTarget(PolicyTarget):
    """z itself, or z in units of its standard deviation."""

    scale: Tensor

    def __init__(self, la_dim: int, standardize: bool = False) -> None:
        super().__init__(la_dim, la_dim)
        self.standardize = standardize
        self.register_buffer("scale", torch.ones(()), persistent=standardize)

    def fit(self, z: Tensor) -> None:
        """Set the unit: the root mean square of the standard deviations of its numbers; 1 if they do not vary."""
        if self.standardize and len(z) > 1:
            deviation = z.var(0).mean().sqrt()
            if deviation > _LEAST_DEVIATION:
                self.scale.copy_(deviation)

    def loss(self, predicted: Tensor, z: Tensor) -> Tensor:
        """Mean squared error, in that unit."""
        return F.mse_loss(predicted, z / self.scale)

    def latent_action(self, predicted: Tensor) -> Tensor:
        """The prediction itself, in the unit of z."""
        return predicted * self.scale


class LatentTargetConfig(PolicyTargetConfig):
    """The latent action before quantization."""

    kind: Literal["latent"] = Field("latent", description="What the latent policy predicts.")
    standardize: bool = Field(
        False,
        description="Predict them in units of their standard deviation, so that Muon learns small ones as fast as "
        "large ones.",
    )

    def build(self, quantizer: Quantizer) -> LatentTarget:
        """See :meth:`PolicyTargetConfig.build`."""
        return LatentTarget(quantizer.la_dim, self.standardize)


POLICY_TARGETS.register(LatentTargetConfig)
