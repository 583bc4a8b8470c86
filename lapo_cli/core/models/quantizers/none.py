"""No quantizer: the world model sees latent actions as they are (the paper's ablation, section 6)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lapo_cli.core.config import QUANTIZERS, QuantizerConfig
from lapo_cli.core.models.quantizers.base import Quantized, Quantizer


class NoQuantizer(Quantizer):
    """z_q = z, without a loss."""

    def __init__(self, la_dim: int) -> None:
        super().__init__()
        self.la_dim = la_dim

    def forward(self, z: Tensor) -> Quantized:
        """See :meth:`Quantizer.forward`."""
        return Quantized(latent=z.float(), loss=torch.zeros((), device=z.device))


class NoQuantizerConfig(QuantizerConfig):
    """Continuous latent actions."""

    kind: Literal["none"] = Field("none", description="Which quantizer of latent actions.")
    size: int = Field(128, ge=1, le=4096, description="Size of a latent action.")

    @property
    def la_dim(self) -> int:
        """Size of a latent action."""
        return self.size

    def build(self) -> NoQuantizer:
        """See :meth:`QuantizerConfig.build`."""
        return NoQuantizer(self.size)


QUANTIZERS.register(NoQuantizerConfig)
