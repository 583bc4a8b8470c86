"""The paper's target: the latent action before quantization, by mean squared error (paper, section 4.2)."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lapo_cli.core.config import POLICY_TARGETS, PolicyTargetConfig
from lapo_cli.core.models.policy_targets.base import PolicyTarget
from lapo_cli.core.models.quantizers.base import Quantizer


class LatentTarget(PolicyTarget):
    """z itself."""

    def loss(self, predicted: Tensor, z: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(predicted, z)

    def latent_action(self, predicted: Tensor) -> Tensor:
        """The prediction itself."""
        return predicted


class LatentTargetConfig(PolicyTargetConfig):
    """The latent action before quantization."""

    kind: Literal["latent"] = Field("latent", description="What the latent policy predicts.")

    def build(self, quantizer: Quantizer) -> LatentTarget:
        """See :meth:`PolicyTargetConfig.build`."""
        return LatentTarget(quantizer.la_dim, quantizer.la_dim)


POLICY_TARGETS.register(LatentTargetConfig)
